-- The queue: what is asked, what became of it, and the rules that nothing may break.
--
--   sandboxes             one row a sandbox: the request (its requester writes it) and the outcome (the controller does)
--   sandbox_attempts      one row an attempt that is over: its own times, exit code, reason and output
--   sandbox_events        the timeline, a line a step
--   sandbox_results       a view of each sandbox's last attempt: what users read
--   sandbox_tenants       optional limits and weights
--   sandbox_installation  this database's own id; every object on an engine carries it
--   sandbox_now()         the clock of all of it; `set sandbox.now = '…'` fakes it for a session
--   sandbox_claim()       queued -> launching, with every admission rule
--   sandbox_forget()      deletes what is past its retention

create function sandbox_now() returns timestamptz
language sql stable parallel safe  -- stable lets it bound an index scan; within one statement the drift is microseconds
return coalesce(nullif(current_setting('sandbox.now', true), '')::timestamptz, clock_timestamp());

create table sandbox_installation (
    singleton  boolean primary key default true check (singleton),
    id         uuid not null default gen_random_uuid()
);
insert into sandbox_installation default values;

create table sandbox_tenants (
    name         text primary key,
    max_running  integer constraint "max_running must be at least 0" check (max_running >= 0),  -- null: no limit
    weight       double precision not null default 1
                 constraint "weight must be over 0 and at most 1,000" check (weight > 0 and weight <= 1000)
);

-- A rule's name is the error that its breaker reads. Numbers are bigint so that one that is far too large meets
-- its rule, with the column's name, and not "integer out of range".
create table sandboxes (
    id                   uuid primary key default gen_random_uuid(),
    seq                  bigint generated always as identity,  -- age, exact
    -- the request
    command              text not null,
    image                text,
    env                  jsonb not null default '{}',
    cpu_millis           bigint not null default 1000,
    memory_mib           bigint not null default 1024,
    disk_mib             bigint not null default 1024,
    timeout_seconds      bigint not null default 600,
    network              text not null default 'none',
    tenant               text not null default 'default',
    priority             bigint not null default 0,
    max_attempts         bigint not null default 1,
    idempotency_key      text,
    cancel_requested_at  timestamptz,
    created_at           timestamptz not null default sandbox_now(),
    -- the outcome
    state                text not null default 'queued',
    attempt              integer not null default 1,   -- the one under way, or next
    runs                 integer not null default 0,   -- attempts that ran and ended badly: what max_attempts counts
    exit_code            integer,
    reason               text,
    message              text,
    waiting              text,                         -- why it does not run yet
    claimed_at           timestamptz,                  -- first claim of this run: the start deadline counts from here
    launched_at          timestamptz,
    started_at           timestamptz,
    finished_at          timestamptz,
    cleaned_at           timestamptz,
    epoch                bigint not null default 0,    -- + 1 a claim: the fencing token
    claimed_by           text,
    lease_until          timestamptz,
    engine               text,                         -- the very engine that holds the run
    run_uid              text,                         -- the one run that this attempt may start
    retry_at             timestamptz,                  -- queued, but not before

    constraint "command must be 1 to 65,536 bytes" check (octet_length(command) between 1 and 65536),
    constraint "image must be an image reference of at most 500 characters"
        check (image ~ '^[A-Za-z0-9][A-Za-z0-9._/:@-]*$' and length(image) <= 500),
    constraint "env must be an object of at most 65,536 bytes"
        check (jsonb_typeof(env) = 'object' and octet_length(env::text) <= 65536),
    constraint "env values must be strings"
        check (jsonb_typeof(env) <> 'object' or not jsonb_path_exists(env, 'strict $.* ? (@.type() <> "string")')),
    constraint "env keys must match [A-Za-z_][A-Za-z0-9_]*"
        check (jsonb_typeof(env) <> 'object'
               or not jsonb_path_exists(env, '$.keyvalue().key ? (!(@ like_regex "^[A-Za-z_][A-Za-z0-9_]*$"))')),
    constraint "cpu_millis must be 1 to 256,000" check (cpu_millis between 1 and 256000),
    constraint "memory_mib must be 16 to 1,048,576" check (memory_mib between 16 and 1048576),
    constraint "disk_mib must be 1 to 1,048,576" check (disk_mib between 1 and 1048576),
    constraint "timeout_seconds must be 1 to 604,800" check (timeout_seconds between 1 and 604800),
    constraint "network must be none or egress" check (network in ('none', 'egress')),
    constraint "tenant must be 1 to 128 bytes" check (octet_length(tenant) between 1 and 128),
    constraint "priority must be -32,768 to 32,767" check (priority between -32768 and 32767),
    constraint "max_attempts must be 1 to 100" check (max_attempts between 1 and 100),
    constraint "idempotency_key must be 1 to 255 bytes" check (octet_length(idempotency_key) between 1 and 255),
    constraint "idempotency_key must be unique per tenant" unique (idempotency_key, tenant),  -- tenant first would
                                                 -- tempt the planner to read it, ended rows and all, for the queue

    constraint "state must be a known one" check (state in (
        'queued',     -- inserted; or an attempt is over and another is due
        'launching',  -- queued -> launching: claimed, under a lease; its object is made, bound and released
        'running',    -- launching -> running: the engine saw the command run
        'succeeded',  -- exit code 0
        'failed',     -- ended badly, or refused, or not started in time: see reason
        'timed_out',  -- its own timeout ended it
        'cancelled',  -- its requester asked for it
        'lost')),     -- its engine has no trace of it
    constraint "reason must be a known one" check (reason in (
        'Completed', 'NonZeroExit', 'DeadlineExceeded', 'OOMKilled', 'Killed', 'Evicted', 'Cancelled', 'Deleted',
        'NodeLost', 'Lost', 'InvalidRequest', 'NameConflict', 'ImagePullFailed', 'StartFailed', 'StartTimeout',
        'NotStarted', 'Unschedulable')),
    constraint "finished_at is set if and only if the state is terminal"
        check ((finished_at is not null) = (state in ('succeeded', 'failed', 'timed_out', 'cancelled', 'lost'))),
    constraint "a terminal state has a reason" check (finished_at is null or reason is not null),
    constraint "cleaned_at comes after finished_at" check (cleaned_at is null or finished_at is not null)
) with (fillfactor = 75, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_cost_delay = 0,
        autovacuum_analyze_scale_factor = 0.02);

create index sandboxes_queue on sandboxes (tenant, priority desc, seq) where state = 'queued' and retry_at is null;
create index sandboxes_retry on sandboxes (retry_at) where state = 'queued' and retry_at is not null;
create index sandboxes_active on sandboxes (tenant) where state in ('launching', 'running');
create index sandboxes_lease on sandboxes (lease_until) where state = 'launching';
create index sandboxes_cancel on sandboxes (id) where cancel_requested_at is not null and finished_at is null;
create index sandboxes_uncleaned on sandboxes (finished_at) where finished_at is not null and cleaned_at is null;
create index sandboxes_cleaned on sandboxes (finished_at) where cleaned_at is not null;

create table sandbox_attempts (
    sandbox_id        uuid not null references sandboxes on delete cascade,
    attempt           integer not null,
    run_uid           text,          -- null: nothing of it was ever allowed to start
    state             text not null,
    exit_code         integer,
    reason            text not null,
    message           text,
    claimed_at        timestamptz,   -- the database's clock
    recorded_at       timestamptz not null default sandbox_now(),
    started_at        timestamptz,   -- the engine's own clock
    ended_at          timestamptz,
    output            text,          -- null: none could be had
    output_truncated  boolean not null default false,
    engine            text,
    node              text,
    image_digest      text,
    primary key (sandbox_id, attempt)
);

-- No foreign key: five lines a sandbox would pay for it, and sandbox_forget() deletes them with their sandbox.
create table sandbox_events (
    id          bigint generated always as identity primary key,
    sandbox_id  uuid not null,
    attempt     integer not null,
    at          timestamptz not null default sandbox_now(),
    step        text not null,
    detail      text
);
create index sandbox_events_of on sandbox_events (sandbox_id, id);

create view sandbox_results as
select s.id, s.state, s.exit_code, s.reason, s.message, a.output, coalesce(a.output_truncated, false) as output_truncated,
       s.attempt as attempts, s.started_at, s.finished_at
from sandboxes s left join sandbox_attempts a on a.sandbox_id = s.id and a.attempt = s.attempt;

-- Rules that compare a row with what it was.

create function sandbox_refuse() returns trigger language plpgsql as $$
begin
    raise exception using errcode = 'check_violation', message = tg_argv[0], detail = format('sandbox %s', old.id);
end $$;

create trigger request_is_final before update on sandboxes for each row
when ((old.id, old.command, old.image, old.env, old.cpu_millis, old.memory_mib, old.disk_mib, old.timeout_seconds,
       old.network, old.tenant, old.priority, old.max_attempts, old.idempotency_key, old.created_at)
      is distinct from
      (new.id, new.command, new.image, new.env, new.cpu_millis, new.memory_mib, new.disk_mib, new.timeout_seconds,
       new.network, new.tenant, new.priority, new.max_attempts, new.idempotency_key, new.created_at))
execute function sandbox_refuse('a request cannot be changed once it is inserted: cancel it and insert another');

create trigger outcome_is_final before update on sandboxes for each row
when (old.finished_at is not null and
      (old.state, old.attempt, old.exit_code, old.reason, old.message, old.run_uid, old.finished_at)
      is distinct from
      (new.state, new.attempt, new.exit_code, new.reason, new.message, new.run_uid, new.finished_at))
execute function sandbox_refuse('a terminal state is written once');

create trigger state_follows_the_protocol before update on sandboxes for each row
when (old.state is distinct from new.state and old.finished_at is null and not (
      old.state = 'queued' and new.state in ('launching', 'cancelled')
      or old.state = 'launching' and new.state <> 'launching'
      or old.state = 'running' and new.state <> 'launching'))
execute function sandbox_refuse('no step of the protocol leads to this state');

create function sandbox_keep_cancel() returns trigger language plpgsql as $$
begin
    if new.cancel_requested_at is null then
        raise exception using errcode = 'check_violation', message = 'cancel_requested_at cannot be taken back',
            detail = format('sandbox %s', old.id);
    end if;
    new.cancel_requested_at := old.cancel_requested_at;  -- asking again is no error
    return new;
end $$;

create trigger cancel_stays before update of cancel_requested_at on sandboxes for each row
when (old.cancel_requested_at is not null and new.cancel_requested_at is distinct from old.cancel_requested_at)
execute function sandbox_keep_cancel();

-- Wake-up: one notification a statement, its payload `insert` or `update`. Dropping the two triggers leaves the controllers' poll, which suffices.

create function sandbox_wake() returns trigger language plpgsql as $$
begin
    perform pg_notify('sandbox_wake', lower(tg_op));
    return null;
end $$;

create trigger wake_on_insert after insert on sandboxes for each statement execute function sandbox_wake();
create trigger wake_on_cancel after update of cancel_requested_at on sandboxes
for each statement execute function sandbox_wake();

-- queued -> launching. Under the lock one caller at a time counts what runs and claims; the counting statement's
-- snapshot is taken after the lock, so it sees every claim before it. Tenants in the order of least running per
-- weight, ties by a lot that their weights load; within a tenant priority, then age. A tenant that has less to give
-- than its turns (its rows are few, locked, or about to be cancelled) leaves them to the others in another round.
create function sandbox_claim(
    controller text, on_engine text, lease_seconds double precision, max_running integer, most integer
) returns setof sandboxes
language plpgsql volatile
set plan_cache_mode = force_generic_plan  -- planning it anew would cost more than running it
set jit = off                             -- compiling it would take 500 times as long as running it
set enable_seqscan = off                  -- statistics lag behind bursts; every step here has its index
set lock_timeout = '30s'                  -- for the turn of every other controller
as $$
declare
    got      sandboxes[];
    room     integer;
    spent    text[] := '{}';  -- tenants that have nothing more to give
    others   boolean;
begin
    perform pg_advisory_xact_lock(7263001);
    loop
        with recursive busy as materialized (
            select s.tenant, count(*) as n from sandboxes s where s.state in ('launching', 'running') group by s.tenant
        ), room as materialized (
            select least(most, max_running - coalesce((select sum(b.n) from busy b), 0))::integer as n
        ), head (tenant) as (  -- each tenant that has work, by one probe of the queue's index
            (select s.tenant from sandboxes s where s.state = 'queued' and s.retry_at is null order by s.tenant limit 1)
            union all
            select (select s.tenant from sandboxes s
                    where s.state = 'queued' and s.retry_at is null and s.tenant > h.tenant order by s.tenant limit 1)
            from head h where h.tenant is not null
        ), share as materialized (
            select h.tenant, coalesce(b.n, 0) as n, coalesce(t.weight, 1) as weight, t.max_running - coalesce(b.n, 0) as cap
            from head h left join busy b on b.tenant = h.tenant left join sandbox_tenants t on t.name = h.tenant
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
                select s.id from sandboxes s
                where s.state = 'queued' and s.retry_at is null and s.cancel_requested_at is null and s.tenant = q.tenant
                order by s.priority desc, s.seq limit q.n for no key update skip locked) p
        ), claimed as (
            update sandboxes s
            set state = 'launching', epoch = s.epoch + 1, engine = on_engine, claimed_by = controller, waiting = null,
                claimed_at = coalesce(s.claimed_at, sandbox_now()),
                lease_until = sandbox_now() + make_interval(secs => lease_seconds)
            where s.id = any (array(select p.id from picked p))  -- not a join: its plan may read the whole table
            returning s as claimed
        ), noted as (
            insert into sandbox_events (sandbox_id, attempt, step, detail)
            select (c.claimed).id, (c.claimed).attempt, 'claimed', controller from claimed c
        ), dry as materialized (
            select q.tenant from quota q where q.n > (select count(*) from picked p where p.tenant = q.tenant)
        )
        select (select array_agg(c.claimed) from claimed c), (select r.n from room r),
               spent || array(select d.tenant from dry d),
               exists (select from share s where not exists (select from dry d where d.tenant = s.tenant))
        into got, room, spent, others;
        return query select * from unnest(got);
        most := most - coalesce(cardinality(got), 0);
        exit when not others or coalesce(cardinality(got), 0) >= room;
    end loop;
end $$;

-- Deletes sandboxes that ended and were cleaned longer ago than that, with all that hangs on them.
create function sandbox_forget(older_than_seconds double precision, most integer) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, public, pg_temp
as $$
declare
    forgotten uuid[];
begin
    with old as materialized (
        select id from public.sandboxes
        where cleaned_at is not null and finished_at < public.sandbox_now() - make_interval(secs => older_than_seconds)
        order by finished_at limit most for update skip locked
    ), gone as (
        delete from public.sandboxes s where s.id = any (array(select o.id from old o)) returning s.id
    )
    select coalesce(array_agg(id), '{}') into forgotten from gone;
    delete from public.sandbox_events where sandbox_id = any (forgotten);
    return cardinality(forgotten);
end $$;

-- Least rights. Nobody but the owner deletes; a requester cannot write an outcome, the controller no request.

revoke all on function sandbox_now, sandbox_refuse, sandbox_keep_cancel, sandbox_wake, sandbox_claim, sandbox_forget
    from public;
grant execute on function sandbox_now to sandbox_controller, sandbox_requester;
grant execute on function sandbox_claim, sandbox_forget to sandbox_controller;
grant select on sandboxes, sandbox_attempts, sandbox_events, sandbox_results, sandbox_installation, sandbox_tenants
    to sandbox_controller;
grant update (state, attempt, runs, exit_code, reason, message, waiting, claimed_at, launched_at, started_at, finished_at,
              cleaned_at, epoch, claimed_by, lease_until, engine, run_uid, retry_at) on sandboxes to sandbox_controller;
grant insert on sandbox_attempts, sandbox_events to sandbox_controller;

grant insert (id, command, image, env, cpu_millis, memory_mib, disk_mib, timeout_seconds, network, tenant, priority,
              max_attempts, idempotency_key) on sandboxes to sandbox_requester;
grant update (cancel_requested_at) on sandboxes to sandbox_requester;
grant select on sandboxes, sandbox_attempts, sandbox_events, sandbox_results, sandbox_tenants to sandbox_requester;
