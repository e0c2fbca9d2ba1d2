-- owner --
-- The role that owns every object here. Each block may run beside another migration, so a role made meanwhile is no error.
do $$ begin
    if not exists (select from pg_roles where rolname = 'sandbox_owner') then create role sandbox_owner nologin; end if;
exception when duplicate_object or unique_violation then null; end $$;

-- controller --
-- The login of `python -m controller run`: reads, and writes outcomes.
do $$ begin
    if not exists (select from pg_roles where rolname = 'sandbox_controller') then create role sandbox_controller login; end if;
exception when duplicate_object or unique_violation then null; end $$;

-- requester --
-- The login of applications: inserts requests, asks to cancel, reads.
do $$ begin
    if not exists (select from pg_roles where rolname = 'sandbox_requester') then create role sandbox_requester login; end if;
exception when duplicate_object or unique_violation then null; end $$;

-- in_catalog --
-- A superuser's statements use nothing that others could make in `public`: a function there may take the place of one of
-- Postgres's own, where its arguments fit better.
set local search_path = pg_catalog, pg_temp;

-- in_public --
set local search_path = public, pg_temp;

-- makers --
-- Who beside the owner may make functions in `public`, and so have them called by our statements.
select rolname from pg_catalog.pg_roles
where rolname in ('sandbox_controller', 'sandbox_requester')
  and pg_catalog.has_schema_privilege(rolname, 'public', 'CREATE');

-- schema --
-- Every object is in one schema, whatever the login's or the database's search_path.
do $$ begin
    if to_regnamespace('public') is null then
        raise exception 'the database has no schema public, in which the queue lives: create it, then run migrate again';
    end if;
end $$;

-- membership --
-- Whoever connects may become sandbox_owner. From Postgres 16 on, whoever makes a role is its member, but may not
-- become it.
do $$ begin
    if not pg_has_role(current_user, 'sandbox_owner',
                       case when current_setting('server_version_num')::integer < 160000 then 'member' else 'set' end) then
        begin
            execute format('grant sandbox_owner to %I', current_user);
        exception when insufficient_privilege then  -- from Postgres 16 on, for roles that another login made
            raise insufficient_privilege using message = format('another login made the roles of this server, and %1$I may '
                'not use them: as a superuser, `grant sandbox_owner, sandbox_controller, sandbox_requester to %1$I with '
                'admin option`, then run migrate again', current_user);
        end;
    end if;
    if not has_schema_privilege('sandbox_owner', 'public', 'create') then
        grant usage, create on schema public to sandbox_owner;
    end if;
    if not (has_schema_privilege('sandbox_controller', 'public', 'usage')
            and has_schema_privilege('sandbox_requester', 'public', 'usage')) then
        grant usage on schema public to sandbox_controller, sandbox_requester;
    end if;
exception when unique_violation then null; end $$;

-- settle --
-- A queue that was restored without its owners, or that an earlier version made in another schema, becomes
-- sandbox_owner's, in public. What the migrations make is named one by one: the rest is an application's.
do $$
declare
    relations constant text[] := array['sandboxes', 'sandbox_attempts', 'sandbox_events', 'sandbox_results',
        'sandbox_installation', 'sandbox_migrations', 'sandbox_tenants', 'tenants', 'sandbox_set_aside',
        'sandbox_claim_turn', 'sandbox_cancels', 'sandbox_controllers'];
    functions constant text[] := array['sandbox_now', 'sandbox_refuse', 'sandbox_keep_cancel', 'sandbox_wake',
        'sandbox_claim', 'sandbox_claim_v3', 'sandbox_forget', 'sandbox_forget_v3', 'sandbox_forget_before',
        'sandbox_cancel', 'sandbox_cancel_all', 'sandbox_apply_cancel', 'sandbox_few_variables', 'sandbox_ended_now',
        'sandbox_register', 'sandbox_unregister', 'sandbox_saw', 'sandbox_place', 'sandbox_note_place', 'sandbox_under_way',
        'sandbox_identify', 'sandbox_moved', 'sandbox_copied', 'sandbox_connected', 'sandbox_connected_v5',
        'sandbox_register_v5', 'sandbox_unregister_v5', 'sandbox_saw_v5', 'sandbox_cancel_all_v5', 'sandbox_identify_v5'];
    homes     text[];
    home      text;
    found     record;
begin
    select array_agg(n.nspname::text order by n.nspname) into homes
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
    where c.relname = 'sandbox_migrations' and c.relkind = 'r' and n.nspname !~ '^pg_'
      and exists (select from pg_class s where s.relnamespace = n.oid and s.relname = 'sandboxes' and s.relkind = 'r')
      and exists (select from pg_class s where s.relnamespace = n.oid and s.relname = 'sandbox_installation');
    if cardinality(homes) > 1 then
        raise exception 'the database has more than one queue, in the schemas %: drop the one that is not used '
            '(its tables and functions sandbox*), then run migrate again', array_to_string(homes, ', ');
    end if;
    home := homes[1];
    for found in
        select case when c.relkind = 'v' then 'view' else 'table' end as kind, format('%I.%I', home, c.relname) as name,
               format('public.%I', c.relname) as here, c.relowner as owner
        from pg_class c
        where c.relnamespace = to_regnamespace(quote_ident(home)) and c.relname = any (relations)
          and c.relkind in ('r', 'v')
          and (c.relname <> 'tenants'  -- an application may have one: ours is known by its rule, or its comment
               or exists (select from pg_constraint t where t.conrelid = c.oid
                          and t.conname = 'weight must be over 0 and at most 1,000')
               or obj_description(c.oid, 'pg_class') like 'ci-fixer-sandbox: %')
        union all
        select 'function', p.oid::regprocedure::text,
               format('public.%I(%s)', p.proname, pg_get_function_identity_arguments(p.oid)), p.proowner
        from pg_proc p
        where p.pronamespace = to_regnamespace(quote_ident(home)) and p.proname = any (functions)
    loop
        if home <> 'public' then
            execute format('alter %s %s set schema public', found.kind, found.name);
        end if;
        if found.owner <> 'sandbox_owner'::regrole then
            execute format('alter %s %s owner to sandbox_owner', found.kind, found.here);
        end if;
    end loop;
end $$;

-- become_owner --
-- What migrations make belongs to sandbox_owner, whoever connects.
set local role sandbox_owner;

-- become_login --
set local role none;

-- history --
-- One row a migration that ran; min_code_version is the oldest controller that may still run beside it. Of two that
-- make it at once, the second waits for the first.
do $$ begin
    create table if not exists public.sandbox_migrations (
        version           integer primary key,
        name              text not null,
        min_code_version  integer not null,
        applied_at        timestamptz not null default now()
    );
exception when duplicate_table or unique_violation then null; end $$;

-- one_at_a_time --
-- One migration at a time. A requester has no right on this table, and a controller none that is enough to hold it.
lock table public.sandbox_migrations in share row exclusive mode;

-- applied --
select version from public.sandbox_migrations;

-- note_applied --
insert into public.sandbox_migrations (version, name, min_code_version) values (%(version)s, %(name)s, %(min_code_version)s);

-- schema_version --
-- What the database is at: its newest migration, and the oldest controller that may run on it; and why it takes no
-- writes of a new session, if so.
select coalesce(max(version), 0) as version, coalesce(max(min_code_version), 0) as min_code_version,
       case when pg_is_in_recovery() then 'it is a standby'
            when current_setting('transaction_read_only')::boolean then 'default_transaction_read_only is on'
       end as only_reads
from public.sandbox_migrations;

-- grants --
-- Least rights, put right each time: what a dump lost comes back, what somebody added to these roles goes. Nobody but
-- the owner deletes; a requester writes no outcome, the controller no request. Whoever may update a row may lock it:
-- so a requester updates nothing.
do $$ begin
    revoke all on sandboxes, sandbox_attempts, sandbox_events, sandbox_results, sandbox_installation, sandbox_migrations,
                  sandbox_tenants, sandbox_set_aside, sandbox_claim_turn, sandbox_cancels, sandbox_controllers
        from public, sandbox_controller, sandbox_requester;
    revoke all on function sandbox_now, sandbox_refuse, sandbox_keep_cancel, sandbox_wake, sandbox_claim, sandbox_claim_v3,
                  sandbox_forget, sandbox_forget_v3, sandbox_forget_before, sandbox_cancel, sandbox_cancel_all,
                  sandbox_apply_cancel, sandbox_few_variables, sandbox_ended_now, sandbox_register, sandbox_unregister,
                  sandbox_place, sandbox_note_place, sandbox_under_way, sandbox_identify, sandbox_moved, sandbox_copied,
                  sandbox_connected, sandbox_saw, sandbox_connected_v5, sandbox_register_v5, sandbox_unregister_v5,
                  sandbox_saw_v5, sandbox_cancel_all_v5, sandbox_identify_v5
        from public, sandbox_controller, sandbox_requester;

    grant select on sandboxes, sandbox_attempts, sandbox_events, sandbox_results, sandbox_tenants
        to sandbox_controller, sandbox_requester;
    grant execute on function sandbox_now to sandbox_controller, sandbox_requester;

    grant select on sandbox_installation, sandbox_migrations, sandbox_set_aside, sandbox_controllers to sandbox_controller;
    grant update (state, attempt, runs, exit_code, reason, message, waiting, claimed_at, launched_at, started_at,
                  finished_at, cleaned_at, epoch, claimed_by, lease_until, engine, run_uid, retry_at)
        on sandboxes to sandbox_controller;
    grant insert on sandbox_attempts, sandbox_events to sandbox_controller;
    grant insert, update on sandbox_set_aside to sandbox_controller;
    grant update on sandbox_claim_turn to sandbox_controller;
    grant execute on function sandbox_claim, sandbox_claim_v3, sandbox_forget, sandbox_forget_v3, sandbox_cancel_all,
                              sandbox_register, sandbox_unregister, sandbox_saw, sandbox_identify, sandbox_connected,
                              sandbox_connected_v5, sandbox_register_v5, sandbox_unregister_v5, sandbox_saw_v5,
                              sandbox_cancel_all_v5, sandbox_identify_v5
        to sandbox_controller;

    grant insert (id, command, image, env, cpu_millis, memory_mib, disk_mib, timeout_seconds, network, tenant, priority,
                  max_attempts, idempotency_key) on sandboxes to sandbox_requester;
    grant execute on function sandbox_cancel to sandbox_requester;

    if obj_description(to_regclass('public.tenants'), 'pg_class') like 'ci-fixer-sandbox: %' then
        revoke all on tenants from public, sandbox_controller, sandbox_requester;
        grant select on tenants to sandbox_controller, sandbox_requester;
    end if;
end $$;

-- retention --
-- How long ended sandboxes stay, and whether this login is one that may say so.
select retention_seconds, has_column_privilege('public.sandbox_installation', 'retention_seconds', 'UPDATE') as may_set
from public.sandbox_installation;

-- set_retention --
-- How long ended sandboxes stay is the owner's to say.
update public.sandbox_installation set retention_seconds = %(seconds)s where retention_seconds <> %(seconds)s;

-- unproven --
-- The rules of a migration that rows from before it have not been compared with yet, by table: one statement each.
select format('alter table %s %s', c.conrelid::regclass, string_agg(format('validate constraint %I', c.conname), ', '))
           as validate
from pg_constraint c
where c.conrelid = any (array[to_regclass('public.sandboxes'), to_regclass('public.sandbox_attempts'),
                              to_regclass('public.sandbox_events'), to_regclass('public.sandbox_set_aside'),
                              to_regclass('public.sandbox_migrations')])
  and not c.convalidated and c.conname like '% must be finite'
group by c.conrelid;

-- holder --
-- Whose transaction has held one of the queue's tables for the longest time.
select a.pid, a.usename, a.application_name, extract(epoch from now() - a.xact_start)::integer as seconds
from pg_stat_activity a
where a.pid <> pg_backend_pid() and a.datname = current_database() and a.xact_start < now() - interval '1 second'
  and exists (select from pg_locks l join pg_class c on c.oid = l.relation
              where l.pid = a.pid and l.granted and c.relnamespace = 'public'::regnamespace
                and (c.relname = 'sandboxes' or c.relname like 'sandbox\_%'))
order by a.xact_start limit 1;
