-- Every statement of the controller, under the transition that it makes. Arrays are sent in order of id, so that two
-- controllers lock in the same order. A row is named by id, attempt and run_uid (or epoch): what does not match is
-- left alone and not returned, and the caller looks again.

-- What is read of every row. Ages are of finite times alone: what one row holds must not cost the others their answer.

-- $row --
       id, attempt, epoch, state, run_uid, claimed_by, cancel_requested_at is not null as cancelled, max_attempts, runs,
       extract(epoch from sandbox_now() - case when isfinite(claimed_at) then claimed_at end)::float8 as claimed_age,
       timeout_seconds

-- What is read beside it of a row that was claimed: what its attempt asks of the engine.

-- $launch --
       command, image, env, cpu_millis, memory_mib, disk_mib, network, tenant,
       coalesce(extract(epoch from sandbox_now() - case when isfinite(created_at) then created_at end), 0)::float8
           as created_age

-- claim --
-- queued -> launching: the next rows that may run, under a new epoch and lease.
select $row, $launch,
       null::float8 as started_age,
       (select s.waiting from sandboxes s where s.id = c.id) as waited  -- this statement still sees it as it was before
from sandbox_claim_v3(%(me)s, %(engine)s, %(lease)s::float8, %(max_running)s, %(most)s) c;

-- overdue --
-- queued: one row that is next in its tenant's turn, may be claimed and was there `seconds` ago, where nobody has claimed
-- any since. Of 1,000 tenants, and of 100 rows of each, since it is asked often; a claim is among the last 1,000 events
-- of a queue that has not claimed for long. `blockers`: whom this controller's sessions wait for.
with recursive busy as materialized (
    select s.tenant, count(*) as n from sandboxes s where s.state in ('launching', 'running') group by s.tenant
), head (tenant, n) as (
    (select s.tenant, 1 from sandboxes s where s.state = 'queued' and s.retry_at is null order by s.tenant limit 1)
    union all
    select (select s.tenant from sandboxes s
            where s.state = 'queued' and s.retry_at is null and s.tenant > h.tenant order by s.tenant limit 1), h.n + 1
    from head h where h.tenant is not null and h.n < 1000
)
select p.id, extract(epoch from sandbox_now() - p.created_at)::float8 as seconds,
       (select string_agg(distinct b.pid::text, ', ') from pg_stat_activity a
        cross join lateral unnest(pg_blocking_pids(a.pid)) as b (pid)
        where a.application_name = %(me)s and a.wait_event_type = 'Lock') as blockers
from head h
left join busy b on b.tenant = h.tenant
left join sandbox_tenants t on t.name = h.tenant
cross join lateral (
    select n.id, n.created_at from (
        select s.id, s.created_at, s.cancel_requested_at from sandboxes s
        where s.state = 'queued' and s.retry_at is null and s.tenant = h.tenant
        order by s.priority desc, s.seq limit 100
    ) n
    where n.cancel_requested_at is null and not exists (
        select from sandbox_set_aside a where a.sandbox_id = n.id and a.step = 'claim' and a.again_at > sandbox_now())
    limit 1
) p
where h.tenant is not null and (t.max_running is null or t.max_running > coalesce(b.n, 0))
  and isfinite(p.created_at) and p.created_at < sandbox_now() - make_interval(secs => %(seconds)s::float8)
  and %(max_running)s::integer > coalesce((select sum(b.n) from busy b), 0)
  and not exists (
      select from (select e.at, e.step from sandbox_events e order by e.id desc limit 1000) e
      where e.step = 'claimed' and e.at > sandbox_now() - make_interval(secs => %(seconds)s::float8))
limit 1;

-- set_aside --
-- What the database refuses claims for, now; and whether any row was claimed in the last `seconds`.
select a.why, count(*) as n,
       exists (select from (select e.at, e.step from sandbox_events e order by e.id desc limit 1000) e
               where e.step = 'claimed' and e.at > sandbox_now() - make_interval(secs => %(seconds)s::float8)) as claimed
from sandbox_set_aside a where a.step = 'claim' and a.again_at > sandbox_now()
group by a.why order by count(*) desc limit 5;

-- take_over --
-- launching -> launching: rows whose lease ran out, same attempt, under a new epoch; and with `mine`, rows that this
-- controller claimed without hearing of it (the reply was lost), which are those not among `held`.
with expired as materialized (
    select id from sandboxes
    where state = 'launching' and engine = %(engine)s
      and (lease_until < sandbox_now() or %(mine)s and claimed_by = %(me)s and id <> all (%(held)s::uuid[]))
    order by lease_until limit %(most)s for no key update skip locked
), taken as (
    update sandboxes s
    set epoch = s.epoch + 1, claimed_by = %(me)s, lease_until = sandbox_now() + make_interval(secs => %(lease)s::float8)
    from expired e where s.id = e.id returning s.*
), noted as (
    insert into sandbox_events (sandbox_id, attempt, step, detail) select id, attempt, 'taken over', %(me)s from taken
)
select $row, $launch,
       null::float8 as started_age,
       waiting as waited
from taken;

-- renew --
-- launching -> launching: the lease of rows still in this controller's hands. One row that somebody holds locked must
-- not cost all the others theirs.
with held as materialized (
    select s.id from sandboxes s join unnest(%(ids)s::uuid[], %(epochs)s::bigint[]) as w (id, epoch)
        on s.id = w.id and s.epoch = w.epoch and s.state = 'launching'
    for no key update of s skip locked
)
update sandboxes s set lease_until = sandbox_now() + make_interval(secs => %(lease)s::float8)
from held h where s.id = h.id returning s.id;

-- hand_back --
-- launching -> launching: leases that end now, of a controller that stops, so that another takes over at once.
with mine as materialized (
    select id from sandboxes where state = 'launching' and claimed_by = %(me)s for no key update skip locked
)
update sandboxes s set lease_until = sandbox_now() from mine m where s.id = m.id;

-- set_waiting --
-- launching -> launching: says why it does not run yet.
with told as (
    update sandboxes s set waiting = w.waiting
    from unnest(%(ids)s::uuid[], %(attempts)s::integer[], %(reasons)s::text[]) as w (id, attempt, waiting)
    where s.id = w.id and s.attempt = w.attempt and s.state = 'launching' and s.waiting is distinct from w.waiting
    returning s.id, s.attempt, s.waiting
), noted as (
    insert into sandbox_events (sandbox_id, attempt, step, detail) select id, attempt, 'waiting', waiting from told
)
select id from told;

-- put_back --
-- launching -> queued: the same attempt, of which nothing was made, until its image is there. It holds no place among
-- those that run or are launched; its start deadline runs on.
with back as (
    update sandboxes s
    set state = 'queued', claimed_by = null, lease_until = null, engine = null, waiting = w.waiting,
        retry_at = sandbox_now() + make_interval(secs => w.delay)
    from unnest(%(ids)s::uuid[], %(attempts)s::integer[], %(epochs)s::bigint[], %(reasons)s::text[], %(delays)s::float8[])
         as w (id, attempt, epoch, waiting, delay)
    where s.id = w.id and s.attempt = w.attempt and s.epoch = w.epoch and s.state = 'launching' and s.run_uid is null
      and s.cancel_requested_at is null
    returning s.id, s.attempt, s.waiting
), noted as (
    insert into sandbox_events (sandbox_id, attempt, step, detail) select id, attempt, 'put back', waiting from back
)
select id from back;

-- make_due --
-- queued -> queued: what these attempts were put back for is over, so they may be claimed before their time.
update sandboxes s set retry_at = null
from unnest(%(ids)s::uuid[], %(attempts)s::integer[]) as w (id, attempt)
where s.id = w.id and s.attempt = w.attempt and s.state = 'queued' and s.retry_at is not null
returning s.id;

-- bind --
-- launching -> launching: the one run that this attempt may start. Only what is bound may be released.
with bound as (
    update sandboxes s set run_uid = w.run_uid, launched_at = coalesce(s.launched_at, sandbox_now())
    from unnest(%(ids)s::uuid[], %(attempts)s::integer[], %(epochs)s::bigint[], %(run_uids)s::text[])
         as w (id, attempt, epoch, run_uid)
    where s.id = w.id and s.attempt = w.attempt and s.epoch = w.epoch and s.state = 'launching'
      and s.cancel_requested_at is null and (s.run_uid is null or s.run_uid = w.run_uid)
    returning s.id, s.attempt, s.run_uid
), noted as (
    insert into sandbox_events (sandbox_id, attempt, step, detail) select id, attempt, 'bound', run_uid from bound
)
select id from bound;

-- mark_running --
-- launching -> running: the engine saw the command run.
with started as (
    update sandboxes s set state = 'running', started_at = sandbox_now(), lease_until = null, waiting = null
    from unnest(%(ids)s::uuid[], %(attempts)s::integer[], %(run_uids)s::text[]) as w (id, attempt, run_uid)
    where s.id = w.id and s.attempt = w.attempt and s.run_uid = w.run_uid and s.state = 'launching'
    returning s.id, s.attempt
), noted as (
    insert into sandbox_events (sandbox_id, attempt, step) select id, attempt, 'running' from started
)
select id from started;

-- record --
-- launching, running -> terminal: the outcome and the output, and whoever listens is told; the first one wins. A row
-- that is not bound is ended only under the epoch under which that was decided: it may be on another engine by now.
with w as (
    select * from unnest(
        %(ids)s::uuid[], %(attempts)s::integer[], %(run_uids)s::text[], %(states)s::text[], %(exit_codes)s::integer[],
        %(reasons)s::text[], %(messages)s::text[], %(outputs)s::text[], %(truncated)s::boolean[],
        %(started)s::timestamptz[], %(ended)s::timestamptz[], %(nodes)s::text[], %(digests)s::text[],
        %(epochs)s::bigint[])
        as w (id, attempt, run_uid, state, exit_code, reason, message, output, truncated, started, ended, node, digest,
              epoch)
), recorded as (
    update sandboxes s
    set state = w.state, exit_code = w.exit_code, reason = w.reason, message = w.message, finished_at = sandbox_now(),
        started_at = coalesce(s.started_at, case when w.started is not null then sandbox_now() end),
        lease_until = null, waiting = null
    from w where s.id = w.id and s.attempt = w.attempt and s.run_uid is not distinct from w.run_uid
             and s.state in ('launching', 'running')
             and (s.run_uid is not null or s.epoch = coalesce(w.epoch, s.epoch))
    returning s.id, s.claimed_at, s.engine
), attempts as (
    insert into sandbox_attempts (sandbox_id, attempt, run_uid, state, exit_code, reason, message, claimed_at, started_at,
                                  ended_at, output, output_truncated, engine, node, image_digest)
    select w.id, w.attempt, w.run_uid, w.state, w.exit_code, w.reason, w.message, r.claimed_at, w.started,
           w.ended, w.output, w.truncated, r.engine, w.node, w.digest
    from w join recorded r on r.id = w.id
), noted as (
    insert into sandbox_events (sandbox_id, attempt, step, detail)
    select w.id, w.attempt, w.state, w.reason from w join recorded r on r.id = w.id
)
select id, pg_notify('sandbox_finished', id::text) from recorded;

-- requeue --
-- launching, running -> queued: this attempt is over and another is due.
-- Counted: the run ended badly, or its engine has no controller any more, and one of max_attempts is used up. Attempt
-- and run_uid name the run, and the epoch is not checked (`epochs` null).
-- Not counted: the run never started, so the start deadline runs on, unless `afresh`. Only who held the lease
-- throughout knows that, so the epoch must match.
with w as (
    select * from unnest(
        %(ids)s::uuid[], %(attempts)s::integer[], %(run_uids)s::text[], %(states)s::text[], %(exit_codes)s::integer[],
        %(reasons)s::text[], %(messages)s::text[], %(outputs)s::text[], %(truncated)s::boolean[],
        %(started)s::timestamptz[], %(ended)s::timestamptz[], %(nodes)s::text[], %(digests)s::text[],
        %(counted)s::boolean[], %(delays)s::float8[], %(epochs)s::bigint[], %(afresh)s::boolean[])
        as w (id, attempt, run_uid, state, exit_code, reason, message, output, truncated, started, ended, node, digest,
              counted, delay, epoch, afresh)
), requeued as (
    update sandboxes s
    set state = 'queued', attempt = s.attempt + 1, runs = s.runs + w.counted::integer, run_uid = null,
        claimed_at = case when w.counted or w.afresh then null else s.claimed_at end, launched_at = null,
        started_at = null, claimed_by = null, lease_until = null, engine = null,
        retry_at = sandbox_now() + make_interval(secs => w.delay),
        waiting = pg_catalog.format('attempt %%s ended: %%s; the next is due', w.attempt, w.reason)
    from w join sandboxes old on old.id = w.id
    where s.id = w.id and s.attempt = w.attempt and s.run_uid is not distinct from w.run_uid
      and s.state in ('launching', 'running') and s.cancel_requested_at is null
      and s.epoch = coalesce(w.epoch, s.epoch)
    returning s.id, old.claimed_at, old.engine
), attempts as (
    insert into sandbox_attempts (sandbox_id, attempt, run_uid, state, exit_code, reason, message, claimed_at, started_at,
                                  ended_at, output, output_truncated, engine, node, image_digest)
    select w.id, w.attempt, w.run_uid, w.state, w.exit_code, w.reason, w.message, r.claimed_at, w.started,
           w.ended, w.output, w.truncated, r.engine, w.node, w.digest
    from w join requeued r on r.id = w.id
), noted as (
    insert into sandbox_events (sandbox_id, attempt, step, detail)
    select w.id, w.attempt, 'queued again', w.reason from w join requeued r on r.id = w.id
)
select id from requeued;

-- mark_cleaned --
-- terminal, with its object gone: cleaned_at.
with cleaned as (
    update sandboxes set cleaned_at = sandbox_now()
    where id = any (%(ids)s::uuid[]) and finished_at is not null and cleaned_at is null
    returning id, attempt
), noted as (
    insert into sandbox_events (sandbox_id, attempt, step) select id, attempt, 'cleaned' from cleaned
)
select id from cleaned;

-- cancel_queued --
-- queued -> cancelled: what is queued (never claimed, put back, or between two attempts) has nothing to end.
with asked as materialized (
    select id from sandboxes where cancel_requested_at is not null and finished_at is null and state = 'queued'
    order by id limit 1000 for no key update skip locked
), cancelled as (
    update sandboxes s
    set state = 'cancelled', reason = 'Cancelled', message = 'cancelled before it started', finished_at = sandbox_now(),
        cleaned_at = sandbox_now(), waiting = null, retry_at = null
    from asked a where s.id = a.id returning s.id, s.attempt
), noted as (
    insert into sandbox_events (sandbox_id, attempt, step, detail)
    select id, attempt, 'cancelled', 'Cancelled' from cancelled
)
select id, pg_notify('sandbox_finished', id::text) from cancelled;

-- cancelling --
-- launching, running: whose requester asked for their end.
select id from sandboxes
where cancel_requested_at is not null and finished_at is null and state in ('launching', 'running') and engine = %(engine)s;

-- retry_due --
-- queued -> queued: attempts whose time has come may be claimed.
with due as materialized (
    select id from sandboxes where state = 'queued' and retry_at <= sandbox_now()
    order by retry_at limit 1000 for no key update skip locked
)
update sandboxes s set retry_at = null from due d where s.id = d.id returning s.id;

-- owned_rows --
-- Every row that an engine's controllers still owe something: active, or ended and not yet cleaned. A controller's
-- connections bear its name: a row is orphaned where its controller has none.
select $row,
       extract(epoch from sandbox_now() - started_at)::float8 as started_age,
       claimed_by <> all ((select sandbox_connected_v5())::text[]) as orphaned,
       coalesce(lease_until > sandbox_now(), false) as leased
from sandboxes
where engine = %(engine)s
  and (state in ('launching', 'running') or finished_at is not null and cleaned_at is null);

-- adopt --
-- running, terminal -> the same: a row whose controller is gone gets another. One that somebody holds locked is left
-- for the next look.
with free as materialized (
    select s.id from sandboxes s
    join unnest(%(ids)s::uuid[], %(epochs)s::bigint[], %(claimed_by)s::text[]) as w (id, epoch, claimed_by)
        on s.id = w.id and s.epoch = w.epoch and s.claimed_by = w.claimed_by
       and (s.state = 'running' or s.finished_at is not null and s.cleaned_at is null)
    for no key update of s skip locked
)
update sandboxes s set claimed_by = %(me)s from free f where s.id = f.id returning s.id;

-- rows --
-- How those rows stand, whatever their state; one that is no more is missing from the answer.
select $row,
       extract(epoch from sandbox_now() - started_at)::float8 as started_age
from sandboxes where id = any (%(ids)s::uuid[]);

-- forget --
-- terminal -> gone: what was cleaned longer ago than the owner's retention. `why`: what keeps the others.
select forgotten, kept, why from sandbox_forget_v3(1000);

-- cancel_all --
-- Asks for the end of everything that has not ended and that nobody else holds.
select sandbox_cancel_all_v5() as asked;

-- unfinished --
-- What is left to end or to clean, by engine (null: not claimed).
select engine, count(*) as n from sandboxes
where state = 'queued' and retry_at is null or state = 'queued' and retry_at is not null
   or state in ('launching', 'running') or finished_at is not null and cleaned_at is null
group by engine order by engine nulls first;

-- locked --
-- Which of these rows another transaction holds.
with free as materialized (
    select id from sandboxes where id = any (%(ids)s::uuid[]) for no key update skip locked
)
select id from sandboxes where id = any (%(ids)s::uuid[]) and id not in (select id from free);

-- counts --
-- Rows of each state that is not terminal; the queue is counted up to 10,000.
select 'queued' as state, count(*) as n
from (select from sandboxes where state = 'queued' and retry_at is null order by tenant, priority desc, seq limit 10000) q
union all
select s.state, count(*) from sandboxes s where s.state in ('launching', 'running') group by s.state;
