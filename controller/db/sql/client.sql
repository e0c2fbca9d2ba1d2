-- The statements of a requester: what `submit`, `explain` and `demo` ask. None needs more than sandbox_requester's rights.

-- listen --
listen sandbox_finished;

-- submit --
-- -> queued. Only the columns that are given are named, so that the table's own defaults count for the others.
insert into sandboxes ({columns}) values ({values})
on conflict do nothing returning id;

-- cancel --
select sandbox_cancel(%(id)s) as asked;

-- progress --
-- How those rows stand. `seconds`: from the insert to the end, or to now. `resting`: it may not be claimed yet.
-- `controllers`: how many are connected, counted only for a row that has been left in the queue for long.
select id, state, attempt, exit_code, reason, message, waiting, retry_at is not null as resting,
       extract(epoch from coalesce(finished_at, sandbox_now()) - created_at)::float8 as seconds,
       case when state = 'queued' and created_at < sandbox_now() - interval '10 seconds'
            then (select count(*) from pg_stat_activity
                  where datname = current_database() and application_name = 'sandbox-listener') end as controllers
from sandboxes where id = any (%(ids)s);

-- output --
select output, output_truncated from sandbox_results where id = %(id)s;

-- sandbox --
-- The whole row, with what it waits for that only the table knows.
select s.*, sandbox_now() as now,
       (select count(*) from (select from sandboxes q
                              where q.state = 'queued' and q.retry_at is null and q.tenant = s.tenant
                                and (q.priority, -q.seq) > (s.priority, -s.seq) limit 1000) ahead) as ahead,
       (select count(*) from sandboxes r where r.state in ('launching', 'running')) as busy,
       (select count(*) from sandboxes r where r.state in ('launching', 'running') and r.tenant = s.tenant) as tenant_busy,
       (select t.max_running from sandbox_tenants t where t.name = s.tenant) as tenant_max_running,
       (select count(*) from pg_stat_activity
        where datname = current_database() and application_name = 'sandbox-listener') as controllers
from sandboxes s where s.id = %(id)s;

-- events --
select at, attempt, step, detail from sandbox_events where sandbox_id = %(id)s order by id;

-- attempts --
select attempt, state, exit_code, reason, message, started_at, ended_at, output_truncated, octet_length(output) as bytes,
       node, image_digest
from sandbox_attempts where sandbox_id = %(id)s order by attempt;
