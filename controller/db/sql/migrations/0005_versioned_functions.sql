-- Every function that a controller calls has the schema version in its name that it came with: `…_v3`, and from here on
-- `…_v5`. A change makes a function of another version beside it, and each controller goes on calling the one that it was
-- written for. The names without a version are the former ones: controllers of the versions before call them.
--
-- sandbox_now() has no version: tables, triggers and requesters use it too, and what it answers does not change.

alter function public.sandbox_connected() rename to sandbox_connected_v5;
create function public.sandbox_connected() returns text[]
language sql stable set search_path = pg_catalog, public, pg_temp
begin atomic
    select public.sandbox_connected_v5();
end;

alter function public.sandbox_register(text, text) rename to sandbox_register_v5;
create function public.sandbox_register(controller text, on_engine text) returns boolean
language sql volatile set search_path = pg_catalog, public, pg_temp
begin atomic
    select public.sandbox_register_v5(controller, on_engine);
end;

alter function public.sandbox_unregister(text[]) rename to sandbox_unregister_v5;
create function public.sandbox_unregister(controllers text[]) returns void
language sql volatile set search_path = pg_catalog, public, pg_temp
begin atomic
    select public.sandbox_unregister_v5(controllers);
end;

alter function public.sandbox_saw(text, text[]) rename to sandbox_saw_v5;
create function public.sandbox_saw(controller text, marks text[]) returns void
language sql volatile set search_path = pg_catalog, public, pg_temp
begin atomic
    select public.sandbox_saw_v5(controller, marks);
end;

alter function public.sandbox_cancel_all() rename to sandbox_cancel_all_v5;
create function public.sandbox_cancel_all() returns integer
language sql volatile set search_path = pg_catalog, public, pg_temp
begin atomic
    select public.sandbox_cancel_all_v5();
end;

-- As before, but for the name of the function that it calls.
create function public.sandbox_identify_v5(out id uuid, out standing text)
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
            select from public.sandbox_controllers c where c.name = any (public.sandbox_connected_v5())
        ) then
            standing := 'foreign';
        else
            update public.sandbox_installation i set id = gen_random_uuid() returning i.id into id;
            standing := 'renewed';
        end if;
    end if;
end $$;
create or replace function public.sandbox_identify(out id uuid, out standing text)
language sql volatile security definer set search_path = pg_catalog, public, pg_temp
begin atomic
    select i.id, i.standing from public.sandbox_identify_v5() i;
end;
