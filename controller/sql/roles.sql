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

-- become_owner --
-- What migrations make belongs to sandbox_owner, whoever connects. From Postgres 16 on, whoever makes a role is its
-- member, but may not become it.
do $$ begin
    if current_user <> 'sandbox_owner' then
        if not pg_has_role(current_user, 'sandbox_owner',
                           case when current_setting('server_version_num')::integer < 160000 then 'member' else 'set' end) then
            execute format('grant sandbox_owner to %I', current_user);
        end if;
        if not has_schema_privilege('sandbox_owner', 'public', 'create') then
            grant usage, create on schema public to sandbox_owner;
        end if;
        if not has_schema_privilege('sandbox_requester', 'public', 'usage') then
            grant usage on schema public to sandbox_controller, sandbox_requester;
        end if;
        set role sandbox_owner;
    end if;
end $$;

-- history --
-- One row a migration that ran; min_code_version is the oldest controller that may still run beside it.
create table if not exists sandbox_migrations (
    version           integer primary key,
    name              text not null,
    min_code_version  integer not null,
    applied_at        timestamptz not null default now()
);
grant select on sandbox_migrations to sandbox_controller;

-- applied --
select version from sandbox_migrations;

-- note_applied --
insert into sandbox_migrations (version, name, min_code_version) values (%(version)s, %(name)s, %(min_code_version)s);

-- standing --
-- What the database is at: its newest migration, and the oldest controller that may run on it; and why it takes no
-- writes of a new session, if so.
select coalesce(max(version), 0) as version, coalesce(max(min_code_version), 0) as min_code_version,
       case when pg_is_in_recovery() then 'it is a standby'
            when current_setting('transaction_read_only')::boolean then 'default_transaction_read_only is on'
       end as only_reads
from sandbox_migrations;
