-- The statements of a requester: what `submit` and `explain` ask.

-- submit --
-- -> queued
insert into sandboxes (command, image, env, cpu_millis, memory_mib, disk_mib, timeout_seconds, network, tenant, priority,
                       max_attempts)
values (%(command)s, %(image)s, %(env)s, %(cpu_millis)s, %(memory_mib)s, %(disk_mib)s, %(timeout_seconds)s, %(network)s,
        %(tenant)s, %(priority)s, %(max_attempts)s)
returning id;

-- cancel --
update sandboxes set cancel_requested_at = now() where id = %(id)s;

-- progress --
select state, attempt, waiting from sandboxes where id = %(id)s;

-- result --
select * from sandbox_results where id = %(id)s;

-- sandbox --
-- The whole row, with what it waits for that only the table knows.
select s.*, sandbox_now() as now,
       (select count(*) from (select from sandboxes q
                              where q.state = 'queued' and q.retry_at is null and q.tenant = s.tenant
                                and (q.priority, -q.seq) > (s.priority, -s.seq) limit 1000) ahead) as ahead,
       (select count(*) from sandboxes r where r.state in ('launching', 'running')) as busy,
       (select count(*) from sandboxes r where r.state in ('launching', 'running') and r.tenant = s.tenant) as tenant_busy,
       (select t.max_running from tenants t where t.name = s.tenant) as tenant_max_running
from sandboxes s where s.id = %(id)s;

-- events --
select at, attempt, step, detail from sandbox_events where sandbox_id = %(id)s order by id;

-- attempts --
select attempt, state, exit_code, reason, message, started_at, ended_at, output_truncated, octet_length(output) as bytes,
       engine, node, image_digest
from sandbox_attempts where sandbox_id = %(id)s order by attempt;
