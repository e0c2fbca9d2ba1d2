-- Who looks after which engine, and which database an installation's id belongs to.
--
--   sandbox_controllers  one row a controller that runs
--   sandbox_connected()  the names of the controllers' connections
--   sandbox_register()   a controller says which engine it looks after; sandbox_unregister() takes that back
--   sandbox_saw()        a controller says whose marks are on its engine
--   sandbox_identify()   this installation's id, and whether it is this very database's
--   sandbox_copied(), sandbox_moved()  the owner says what became of the database that had the id before

-- seq is the order in which they registered. A name without a connection is stale.
create table public.sandbox_controllers (
    seq            bigint generated always as identity,
    name           text primary key,   -- as its connections bear it
    engine         text not null,
    registered_at  timestamptz not null default public.sandbox_now()
                   constraint "registered_at must be finite" check (isfinite(registered_at)),
    sees           text[] not null default '{}',  -- whose marks were on its engine when it last looked
    looks          bigint not null default 0      -- how often it has looked
);

-- The names of this database's connections whose login could be a controller's: one that may only ask cannot pass for
-- a controller that is gone.
create function public.sandbox_connected() returns text[]
language sql stable set search_path = pg_catalog, public, pg_temp
begin atomic
    select coalesce(array_agg(distinct a.application_name), '{}') from pg_stat_activity a
    where a.datname = current_database() and has_column_privilege(a.usesysid, 'public.sandboxes', 'state', 'UPDATE');
end;

-- Registers a controller; one that is registered stays as it is. Returns whether it is new. The lock makes the order of
-- seq the order in which rows are seen: of two that start at once, the later sees the earlier. The others are told, so
-- that they look for its mark.
create function public.sandbox_register(controller text, on_engine text) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, public, pg_temp
as $$
begin
    if exists (select from public.sandbox_controllers c where c.name = controller and c.engine = on_engine) then
        return false;
    end if;
    lock table public.sandbox_controllers in share row exclusive mode;
    insert into public.sandbox_controllers (name, engine) values (controller, on_engine)
    on conflict (name) do update set engine = excluded.engine;
    perform pg_notify('sandbox_wake', 'register');
    return true;
end $$;

-- A controller has looked, and seen the marks of these controllers on its engine.
create function public.sandbox_saw(controller text, marks text[]) returns void
language sql volatile security definer set search_path = pg_catalog, public, pg_temp
begin atomic
    update public.sandbox_controllers set sees = marks, looks = looks + 1 where name = controller;
end;

-- Removes controllers that stopped.
create function public.sandbox_unregister(controllers text[]) returns void
language sql volatile security definer set search_path = pg_catalog, public, pg_temp
begin atomic
    delete from public.sandbox_controllers where name = any (controllers);
end;

-- Where the installation's id was given: the server's system identifier and the database's oid. Null: not known yet.
alter table public.sandbox_installation
    add column system_identifier bigint,
    add column database_oid oid;

create function public.sandbox_place(out system_identifier bigint, out database_oid oid)
language sql stable set search_path = pg_catalog, public, pg_temp
begin atomic
    select s.system_identifier, d.oid from pg_control_system() s, pg_database d where d.datname = current_database();
end;

-- Whoever gives this database another id says that it is this database's own.
create function public.sandbox_note_place() returns trigger
language plpgsql set search_path = pg_catalog, public, pg_temp
as $$
begin
    select p.system_identifier, p.database_oid into new.system_identifier, new.database_oid
    from public.sandbox_place() p;
    return new;
end $$;

create trigger place_follows_id before update of id on public.sandbox_installation for each row
when (old.id is distinct from new.id) execute function public.sandbox_note_place();

-- Whether anything of this database is under way on an engine.
create function public.sandbox_under_way() returns bigint
language sql stable set search_path = pg_catalog, public, pg_temp
begin atomic
    select count(*) from public.sandboxes
    where state in ('launching', 'running') or finished_at is not null and cleaned_at is null;
end;

-- This database's own id. `standing` is 'own'; 'renewed' if the id belongs to another database and nothing is under
-- way here, so that a new one was taken; 'foreign' if something is under way, and a person has to say whose it is.
create function public.sandbox_identify(out id uuid, out standing text)
language plpgsql volatile security definer set search_path = pg_catalog, public, pg_temp
as $$
declare
    kept public.sandbox_installation;
    here record;
begin
    select * into kept from public.sandbox_installation for update;
    select * into here from public.sandbox_place();
    id := kept.id;
    standing := 'own';
    if kept.database_oid is null then
        update public.sandbox_installation
        set system_identifier = here.system_identifier, database_oid = here.database_oid;
    elsif (kept.system_identifier, kept.database_oid) is distinct from (here.system_identifier, here.database_oid) then
        if public.sandbox_under_way() > 0 or exists (
            select from public.sandbox_controllers c where c.name = any (public.sandbox_connected())
        ) then
            standing := 'foreign';
        else
            update public.sandbox_installation i set id = gen_random_uuid() returning i.id into id;
            standing := 'renewed';
        end if;
    end if;
end $$;

-- `migrate --moved`: the original is gone, and this database goes on in its place. For the owner alone.
create function public.sandbox_moved() returns void
language sql volatile set search_path = pg_catalog, public, pg_temp
begin atomic
    update public.sandbox_installation i
    set system_identifier = p.system_identifier, database_oid = p.database_oid from public.sandbox_place() p;
end;

-- `migrate --copy`: the original lives on, and what runs on any engine is the original's. For the owner alone. Returns how
-- many rows were under way.
create function public.sandbox_copied() returns bigint
language plpgsql volatile set search_path = pg_catalog, public, pg_temp
as $$
declare
    touched bigint := public.sandbox_under_way();
    ended   uuid;
begin
    update public.sandbox_installation set id = gen_random_uuid();
    for ended in
        with own as materialized (
            select s.id, s.attempt, s.run_uid, s.claimed_at, s.engine, k.state, k.reason, k.message
            from public.sandboxes s cross join lateral (
                select 'lost', 'Lost', 'this database is a copy: the run is the original''s, and its end is known there'
                where s.run_uid is not null or s.state = 'running'
                union all
                select 'cancelled', 'Cancelled', 'cancelled before it started'
                where s.run_uid is null and s.state = 'launching' and s.cancel_requested_at is not null
                union all
                select 'queued', 'NotStarted', 'this database is a copy: what the attempt had is the original''s'
                where s.run_uid is null and s.state = 'launching' and s.cancel_requested_at is null
            ) k (state, reason, message)
            where s.state in ('launching', 'running')
        ), again as (
            update public.sandboxes s
            set state = 'queued', attempt = s.attempt + 1, claimed_at = null, launched_at = null, claimed_by = null,
                lease_until = null, engine = null, waiting = null
            from own o where s.id = o.id and o.state = 'queued'
        ), over as (
            update public.sandboxes s
            set state = o.state, reason = o.reason, message = o.message, finished_at = public.sandbox_now(),
                cleaned_at = public.sandbox_now(), lease_until = null, waiting = null
            from own o where s.id = o.id and o.state <> 'queued'
        ), attempts as (
            insert into public.sandbox_attempts
                (sandbox_id, attempt, run_uid, state, reason, message, claimed_at, engine)
            select o.id, o.attempt, o.run_uid, case o.state when 'queued' then 'failed' else o.state end, o.reason,
                   o.message, o.claimed_at, o.engine
            from own o
        ), noted as (
            insert into public.sandbox_events (sandbox_id, attempt, step, detail)
            select o.id, o.attempt, case o.state when 'queued' then 'queued again' else o.state end, o.reason from own o
        )
        select o.id from own o where o.state <> 'queued'
    loop
        perform pg_notify('sandbox_finished', ended::text);
    end loop;
    update public.sandboxes set cleaned_at = public.sandbox_now() where finished_at is not null and cleaned_at is null;
    return touched;
end $$;
