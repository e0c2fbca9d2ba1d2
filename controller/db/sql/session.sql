-- What every session of the project sets as soon as it is connected: whatever a database or a role has set for its
-- sessions (`alter database … set …`), our statements mean the same. default_transaction_read_only is left as it is: it
-- is the operator's word. So is `role`.

-- session --
set statement_timeout = 0; set lock_timeout = 0; set idle_in_transaction_session_timeout = 0;
set search_path = public, pg_temp;  -- pg_catalog comes first where it is not named
set datestyle = 'iso, ymd'; set timezone = 'UTC'; set intervalstyle = 'postgres'; set bytea_output = 'hex';
set extra_float_digits = 1; set array_nulls = on; set standard_conforming_strings = on;
set default_transaction_isolation = 'read committed'; set default_transaction_deferrable = off;
-- A machine that lost its power sends no farewell: the server, too, notices within half a minute that it is gone.
set tcp_keepalives_idle = 10; set tcp_keepalives_interval = 5; set tcp_keepalives_count = 3; set tcp_user_timeout = 25000;
set row_security = on; set exit_on_error = off; set jit = off;  -- compiling takes half a second, running a millisecond
set plan_cache_mode = 'auto';
select set_config('synchronous_commit', 'local', false)  -- an outcome that was recorded outlives the server's crash
where current_setting('synchronous_commit') = 'off';
select set_config(name, case when vartype = 'integer' then '0' when vartype = 'string' then '' else boot_val end, false)
from pg_settings  -- not each version has them all
where name in ('idle_session_timeout', 'transaction_timeout', 'restrict_nonsystem_relation_kind')
   or starts_with(name, 'enable_') and vartype = 'bool' and context = 'user' and setting <> boot_val;

-- controller --
-- Every statement has its index, but the planner's statistics lag behind bursts of inserts. The lock's timeout is below
-- deadlock_timeout: a requester never meets a deadlock of ours.
set enable_seqscan = off; set statement_timeout = '30s'; set lock_timeout = '500ms';

-- installation --
-- Whose database this session is on, and whether it is a copy that has not been settled (as by sandbox_identify_v5): the
-- first thing that a controller asks.
select i.id, i.database_oid is not null
             and (i.system_identifier, i.database_oid) is distinct from (s.system_identifier, d.oid) as copied
from public.sandbox_installation i, pg_catalog.pg_control_system() s, pg_catalog.pg_database d
where d.datname = pg_catalog.current_database();

-- mark --
-- Whatever has this mark afterwards is this session.
select set_config('sandbox.session', %(mark)s, false);

-- marked --
select current_setting('sandbox.session', true) as mark;
