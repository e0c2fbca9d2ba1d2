-- What one login can do to all the others: names, the clock, locks, retention, and rows that stand in the way.
--
--   sandbox_tenants        optional limits and weights; `tenants` until this version
--   sandbox_set_aside      rows that the database refuses to claim or to forget, why, and when they are tried again
--   sandbox_claim_turn     an empty table: its lock is the turn of one claim
--   sandbox_cancels        empty at rest: a cancel between its call and its caller's commit
--   sandbox_claim_v3()     queued -> launching; answers by columns of its own, so that the table may get others
--   sandbox_cancel()       a requester asks for the end of one sandbox
--   sandbox_forget_v3()    deletes what is past the owner's retention
--
-- Every function has its own search_path: that of whose statement calls it decides nothing. Its variables come before
-- columns, so that no column that somebody adds to a table takes a variable's place.

-- Rows with a timestamp that is not finite, from a clock that a login could set: found without a lock, mended under
-- it. From here to the commit nobody else reads or writes the queue; nothing below takes long.
do $$
declare
    odd uuid[];
begin
    select coalesce(array_agg(s.id), '{}') into odd from public.sandboxes s where not (
        isfinite(s.created_at) and isfinite(coalesce(s.cancel_requested_at, 'epoch'))
        and isfinite(coalesce(s.claimed_at, 'epoch')) and isfinite(coalesce(s.launched_at, 'epoch'))
        and isfinite(coalesce(s.started_at, 'epoch')) and isfinite(coalesce(s.finished_at, 'epoch'))
        and isfinite(coalesce(s.cleaned_at, 'epoch')) and isfinite(coalesce(s.lease_until, 'epoch'))
        and isfinite(coalesce(s.retry_at, 'epoch')));
    lock table public.sandboxes, public.sandbox_attempts, public.sandbox_events in access exclusive mode;
    alter table public.sandboxes disable trigger user;
    update public.sandboxes s set
        created_at = case when isfinite(s.created_at) then s.created_at else clock_timestamp() end,
        cancel_requested_at = case when isfinite(s.cancel_requested_at) then s.cancel_requested_at
                                   when s.cancel_requested_at is not null then clock_timestamp() end,
        claimed_at = case when isfinite(s.claimed_at) then s.claimed_at
                          when s.claimed_at is not null then clock_timestamp() end,
        launched_at = case when isfinite(s.launched_at) then s.launched_at
                           when s.launched_at is not null then clock_timestamp() end,
        started_at = case when isfinite(s.started_at) then s.started_at
                          when s.started_at is not null then clock_timestamp() end,
        finished_at = case when isfinite(s.finished_at) then s.finished_at
                           when s.finished_at is not null then clock_timestamp() end,
        cleaned_at = case when isfinite(s.cleaned_at) then s.cleaned_at
                          when s.cleaned_at is not null then clock_timestamp() end,
        lease_until = case when isfinite(s.lease_until) then s.lease_until
                           when s.lease_until is not null then clock_timestamp() end,
        retry_at = case when isfinite(s.retry_at) then s.retry_at
                        when s.retry_at is not null then clock_timestamp() end
    where s.id = any (odd);
    alter table public.sandboxes enable trigger user;
    update public.sandbox_attempts a set
        claimed_at = case when isfinite(a.claimed_at) then a.claimed_at end,
        recorded_at = case when isfinite(a.recorded_at) then a.recorded_at else clock_timestamp() end,
        started_at = case when isfinite(a.started_at) then a.started_at end,
        ended_at = case when isfinite(a.ended_at) then a.ended_at end
    where a.sandbox_id = any (odd);
    update public.sandbox_events e set at = clock_timestamp() where e.sandbox_id = any (odd) and not isfinite(e.at);
end $$;

-- The clock. Tests replace this function in databases of their own; no login can.
create or replace function public.sandbox_now() returns timestamptz
language sql stable parallel safe  -- stable lets it bound an index scan; within one statement the drift is microseconds
return pg_catalog.clock_timestamp();

-- Names. Another application may have a table `tenants`; ours is known by its rule. Controllers and clients of the
-- version before read `tenants`: where there was one, a view stays. Drop it when none of them runs any more.
do $$
begin
    if exists (select from pg_constraint where conrelid = to_regclass('public.tenants')
               and conname = 'weight must be over 0 and at most 1,000')
       and to_regclass('public.sandbox_tenants') is null then
        alter table public.tenants rename to sandbox_tenants;
        alter index public.tenants_pkey rename to sandbox_tenants_pkey;
        create view public.tenants as select name, max_running, weight from public.sandbox_tenants;
        comment on view public.tenants is 'ci-fixer-sandbox: the former name of sandbox_tenants';
    end if;
end $$;

create table public.sandbox_set_aside (
    sandbox_id  uuid not null,  -- no foreign key: sandbox_forget_v3() deletes both
    step        text not null constraint "step must be a known one" check (step in ('claim', 'forget')),
    why         text not null,
    since       timestamptz not null default public.sandbox_now(),
    again_at    timestamptz not null,
    primary key (sandbox_id, step)
);

create table public.sandbox_claim_turn ();

create table public.sandbox_cancels (
    id          bigint generated always as identity primary key,
    sandbox_id  uuid not null
);

alter table public.sandbox_installation
    add column retention_seconds double precision not null default 2592000  -- 30 days
    constraint "retention_seconds must be 1 to 3,153,600,000" check (retention_seconds between 1 and 3153600000);

-- Every timestamp is finite. `migrate` validates these afterwards, without a lock that anybody waits for.
do $$
declare
    found record;
begin
    for found in
        select c.relname, a.attname from pg_class c join pg_attribute a on a.attrelid = c.oid
        where c.oid = any (array['public.sandboxes', 'public.sandbox_attempts', 'public.sandbox_events',
                                 'public.sandbox_set_aside', 'public.sandbox_migrations']::regclass[])
          and a.attnum > 0 and not a.attisdropped and a.atttypid = 'timestamptz'::regtype
    loop
        execute format('alter table public.%I add constraint %I check (isfinite(%I)) not valid',
                       found.relname, found.attname || ' must be finite', found.attname);
    end loop;
end $$;

-- A bound on new requests alone: a row that was accepted before goes its way.
create function public.sandbox_few_variables() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    if jsonb_typeof(new.env) = 'object' and octet_length(new.env::text) <= 65536  -- beyond, that rule speaks
       and (select count(*) from jsonb_object_keys(new.env)) > 256 then
        raise exception using errcode = 'check_violation', constraint = 'env must have at most 256 variables',
            schema = tg_table_schema, table = tg_table_name,
            message = 'new row for relation "sandboxes" violates check constraint "env must have at most 256 variables"';
    end if;
    return new;
end $$;

create trigger few_variables before insert on public.sandboxes for each row
when (new.env <> '{}') execute function public.sandbox_few_variables();

-- The database's clock alone says when a sandbox ended: retention counts from there.
create function public.sandbox_ended_now() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp as $$
begin
    new.finished_at := public.sandbox_now();
    return new;
end $$;

create trigger ended_by_the_clock before update on public.sandboxes for each row
when (old.finished_at is null and new.finished_at is not null) execute function public.sandbox_ended_now();

alter function public.sandbox_refuse set search_path = pg_catalog, public, pg_temp;
alter function public.sandbox_keep_cancel set search_path = pg_catalog, public, pg_temp;
alter function public.sandbox_wake set search_path = pg_catalog, public, pg_temp;

-- Cancel. A requester has no right to update, and so none to lock what the controller must write. The row itself is
-- written when the caller commits: until then an open transaction holds nothing of it.

create function public.sandbox_apply_cancel() returns trigger
language plpgsql security definer set search_path = pg_catalog, public, pg_temp as $$
begin
    update public.sandboxes s set cancel_requested_at = public.sandbox_now()
    where s.id = new.sandbox_id and s.finished_at is null and s.cancel_requested_at is null;
    delete from public.sandbox_cancels c where c.id = new.id;
    return null;
end $$;

create constraint trigger apply_at_commit after insert on public.sandbox_cancels deferrable initially deferred
for each row execute function public.sandbox_apply_cancel();

-- Asks for the end of one sandbox; returns whether it is there and has not ended.
create function public.sandbox_cancel(sandbox uuid) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, public, pg_temp as $$
#variable_conflict use_variable
begin
    insert into public.sandbox_cancels (sandbox_id)
    select s.id from public.sandboxes s where s.id = sandbox and s.finished_at is null;
    return found;
end $$;

-- Claim. queued -> launching. In its turn one caller at a time counts what runs and claims; the counting statement's
-- snapshot is taken after the lock, so it sees every claim before it. Tenants in the order of least running per
-- weight, ties by a lot that their weights load; within a tenant priority, then age. A tenant that has less to give
-- than its turns (its rows are few, locked, or about to be cancelled) leaves them to the others in another round.
-- Where the database refuses one of the rows, they are claimed one by one, and that row is put aside for a time.
-- A version that needs other columns gets a function of its own name: a type of the table's rows, or a changed answer,
-- would break the sessions that are connected.
create function public.sandbox_claim_v3(
    controller text, on_engine text, lease_seconds double precision, max_running integer, most integer
) returns table (
    id uuid, attempt integer, epoch bigint, state text, run_uid text, claimed_by text, cancel_requested_at timestamptz,
    max_attempts bigint, runs integer, claimed_at timestamptz, created_at timestamptz, timeout_seconds bigint,
    command text, image text, env jsonb, cpu_millis bigint, memory_mib bigint, disk_mib bigint, network text, tenant text
)
language plpgsql volatile
set search_path = pg_catalog, public, pg_temp
set plan_cache_mode = force_generic_plan  -- planning it anew would cost more than running it
set jit = off                             -- compiling it would take 500 times as long as running it
set enable_seqscan = off                  -- statistics lag behind bursts; every step here has its index
set lock_timeout = '30s'                  -- for the turn of every other controller
as $$
#variable_conflict use_variable
declare
    batch    uuid[];          -- this round's rows
    part     uuid[];
    why      text;
    before   integer;
    taken    uuid[] := '{}';
    aside    uuid[];
    room     integer;
    spent    text[] := '{}';  -- tenants that have nothing more to give
    others   boolean;
begin
    lock table public.sandbox_claim_turn in exclusive mode;
    aside := array(select a.sandbox_id from public.sandbox_set_aside a
                   where a.step = 'claim' and a.again_at > public.sandbox_now());
    loop
        with recursive busy as materialized (
            select s.tenant, count(*) as n from public.sandboxes s where s.state in ('launching', 'running') group by s.tenant
        ), room as materialized (
            select least(most, max_running - coalesce((select sum(b.n) from busy b), 0))::integer as n
        ), head (tenant) as (  -- each tenant that has work, by one probe of the queue's index
            (select s.tenant from public.sandboxes s
             where s.state = 'queued' and s.retry_at is null order by s.tenant limit 1)
            union all
            select (select s.tenant from public.sandboxes s
                    where s.state = 'queued' and s.retry_at is null and s.tenant > h.tenant order by s.tenant limit 1)
            from head h where h.tenant is not null
        ), share as materialized (
            select h.tenant, coalesce(b.n, 0) as n, coalesce(t.weight, 1) as weight, t.max_running - coalesce(b.n, 0) as cap
            from head h left join busy b on b.tenant = h.tenant left join public.sandbox_tenants t on t.name = h.tenant
            where h.tenant is not null and h.tenant <> all (spent) and (select r.n from room r) > 0
              and (t.max_running is null or t.max_running > coalesce(b.n, 0))
        ), level as materialized (  -- of running per weight, up to which there are turns enough for the whole room
            select ((select r.n from room r) + sum(s.n)) / sum(s.weight) as most from share s
        ), turn as (
            select s.tenant
            from share s, level l, room r,
                 generate_series(1, least(r.n, coalesce(s.cap, r.n), ceil(l.most * s.weight - s.n) + 1)::integer) as i
            order by (s.n + i - 1) / s.weight, -ln(1 - random()) / s.weight
            limit greatest((select r.n from room r), 0)
        ), quota as materialized (
            select t.tenant, count(*) as n from turn t group by t.tenant
        ), picked as materialized (
            select p.id, q.tenant from quota q cross join lateral (
                select s.id from public.sandboxes s
                where s.state = 'queued' and s.retry_at is null and s.cancel_requested_at is null and s.tenant = q.tenant
                  and s.id <> all (aside)
                order by s.priority desc, s.seq limit q.n for no key update skip locked) p
        ), dry as materialized (
            select q.tenant from quota q where q.n > (select count(*) from picked p where p.tenant = q.tenant)
        )
        select array(select p.id from picked p), (select r.n from room r),
               spent || array(select d.tenant from dry d),
               exists (select from share s where not exists (select from dry d where d.tenant = s.tenant))
        into batch, room, spent, others;
        before := cardinality(taken);
        for i in 0 .. cardinality(batch) loop  -- 0: all at once, which suffices but for a row that is refused
            part := case i when 0 then batch else batch[i:i] end;
            begin
                with claimed as (
                    update public.sandboxes s
                    set state = 'launching', epoch = s.epoch + 1, engine = on_engine, claimed_by = controller,
                        waiting = null, claimed_at = coalesce(s.claimed_at, public.sandbox_now()),
                        lease_until = public.sandbox_now() + make_interval(secs => lease_seconds)
                    where s.id = any (part) returning s.id, s.attempt
                )
                insert into public.sandbox_events (sandbox_id, attempt, step, detail)
                select c.id, c.attempt, 'claimed', controller from claimed c;
                taken := taken || part;
                exit when i = 0;
            exception when others then
                if left(sqlstate, 2) in ('25', '40', '53', '55', '57', '58') then
                    raise;  -- the server's trouble, no row's
                end if;
                why := left(sqlerrm, 500);
                if i > 0 then
                    aside := aside || part;
                    insert into public.sandbox_set_aside as a (sandbox_id, step, why, again_at)
                    values (part[1], 'claim', why, public.sandbox_now() + interval '1 minute')
                    on conflict (sandbox_id, step) do update set why = excluded.why, again_at = public.sandbox_now()
                        + least(interval '1 day', greatest(interval '1 minute', (public.sandbox_now() - a.since) / 2));
                    insert into public.sandbox_events (sandbox_id, attempt, step, detail)
                    select s.id, s.attempt, 'set aside', why from public.sandboxes s where s.id = any (part);
                end if;
            end;
        end loop;
        most := most - (cardinality(taken) - before);
        exit when not others or cardinality(taken) - before >= room;
    end loop;
    return query
        select s.id, s.attempt, s.epoch, s.state, s.run_uid, s.claimed_by::text, s.cancel_requested_at, s.max_attempts,
               s.runs, s.claimed_at, s.created_at, s.timeout_seconds, s.command, s.image, s.env, s.cpu_millis, s.memory_mib,
               s.disk_mib, s.network, s.tenant
        from public.sandboxes s where s.id = any (taken);
end $$;

-- What controllers of the version before call.
drop function public.sandbox_claim(text, text, double precision, integer, integer);
create function public.sandbox_claim(
    controller text, on_engine text, lease_seconds double precision, max_running integer, most integer
) returns table (
    id uuid, attempt integer, epoch bigint, state text, run_uid text, claimed_by text, cancel_requested_at timestamptz,
    max_attempts bigint, runs integer, claimed_at timestamptz, created_at timestamptz, timeout_seconds bigint,
    command text, image text, env jsonb, cpu_millis bigint, memory_mib bigint, disk_mib bigint, network text
)
language sql volatile set search_path = pg_catalog, public, pg_temp
as $$
    select c.id, c.attempt, c.epoch, c.state, c.run_uid, c.claimed_by, c.cancel_requested_at, c.max_attempts, c.runs,
           c.claimed_at, c.created_at, c.timeout_seconds, c.command, c.image, c.env, c.cpu_millis, c.memory_mib,
           c.disk_mib, c.network
    from public.sandbox_claim_v3(controller, on_engine, lease_seconds, max_running, most) c
$$;

-- Retention. Deletes sandboxes that were cleaned and ended before that instant, with all that hangs on them. One that
-- something of the database's keeps (another table's foreign key, a trigger) is put aside for a time, so that it stands
-- in no other's way; `why` says what keeps them.
create function public.sandbox_forget_before(instant timestamptz, most integer,
                                             out forgotten integer, out kept integer, out why text[])
language plpgsql volatile
set search_path = pg_catalog, public, pg_temp
set enable_seqscan = off
set jit = off  -- a foreign key without an index looks dear enough to compile, for each row anew
set lock_timeout = '100ms'  -- for rows of other tables that a foreign key deletes too
as $$
#variable_conflict use_variable
declare
    began    timestamptz := clock_timestamp();
    old      uuid[];
    part     uuid[];
    gone     integer;
    rule     text;
    of_table text;
    keeper   text;
begin
    forgotten := 0;
    kept := 0;
    why := '{}';
    old := array(
        select s.id from public.sandboxes s
        where s.cleaned_at is not null and s.finished_at < instant
          and not exists (select from public.sandbox_set_aside a
                          where a.sandbox_id = s.id and a.step = 'forget' and a.again_at > public.sandbox_now())
        order by s.finished_at limit most for update of s skip locked);
    for i in 0 .. cardinality(old) loop  -- 0: all at once, which suffices but for a row that is kept
        part := case i when 0 then old else old[i:i] end;
        begin
            delete from public.sandbox_events e where e.sandbox_id = any (part);
            delete from public.sandbox_set_aside a where a.sandbox_id = any (part);
            delete from public.sandboxes s where s.id = any (part);
            get diagnostics gone = row_count;
            set constraints all immediate;  -- a foreign key may be deferred
            if gone < cardinality(part) then
                raise exception 'a trigger of the table sandboxes';
            end if;
            forgotten := forgotten + gone;
            exit when i = 0;
        exception when others then
            if left(sqlstate, 2) in ('25', '40', '53', '57', '58') then
                raise;  -- the server's trouble, no row's
            end if;
            get stacked diagnostics rule = constraint_name, of_table = table_name, keeper = message_text;
            if i > 0 then
                if left(sqlstate, 2) = '23' and rule <> '' then
                    keeper := format('foreign key %s of table %s', rule, of_table);
                end if;
                kept := kept + 1;
                why := why || left(keeper, 500);
                insert into public.sandbox_set_aside as a (sandbox_id, step, why, again_at)
                values (part[1], 'forget', left(keeper, 500), public.sandbox_now() + interval '1 minute')
                on conflict (sandbox_id, step) do update set why = excluded.why, again_at = public.sandbox_now()
                    + least(interval '1 day', greatest(interval '1 minute', (public.sandbox_now() - a.since) / 2));
            end if;
        end;
        exit when clock_timestamp() - began > interval '5 seconds';
    end loop;
    why := array(select distinct unnest(why));
end $$;

create function public.sandbox_forget_v3(most integer, out forgotten integer, out kept integer, out why text[])
language sql volatile security definer set search_path = pg_catalog, public, pg_temp
as $$
    select f.forgotten, f.kept, f.why
    from public.sandbox_installation i,
         public.sandbox_forget_before(public.sandbox_now() - make_interval(secs => i.retention_seconds), sandbox_forget_v3.most) f
$$;

-- What controllers of the version before call. Their own retention counts where it is the longer one.
create or replace function public.sandbox_forget(older_than_seconds double precision, most integer) returns integer
language sql volatile security definer set search_path = pg_catalog, public, pg_temp
as $$
    select f.forgotten
    from public.sandbox_installation i,
         public.sandbox_forget_before(
             public.sandbox_now() - make_interval(secs => greatest(sandbox_forget.older_than_seconds, i.retention_seconds)),
             sandbox_forget.most) f
$$;
