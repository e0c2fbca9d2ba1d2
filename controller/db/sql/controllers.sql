-- The statements about controllers and engines: who looks after what.

-- register --
-- This controller looks after this engine. `new`: it was not registered.
select sandbox_register_v5(%(me)s, %(engine)s) as new;

-- unregister --
-- Controllers that stopped, or that have had no connection for long.
select sandbox_unregister_v5(%(names)s::text[]);

-- saw --
-- This controller has looked at its engine, and seen the marks of these controllers.
select sandbox_saw_v5(%(me)s, %(marks)s::text[]);

-- attending --
-- Who looks after which engine, and who is connected. A row of the answer is one of these:
-- seq, connected: a controller that is registered for that engine and runs.
-- seq, not connected: a registration that is left of a controller that is gone, or has no connection now.
-- no seq, a name: it holds rows on that engine without a registration. If it is connected, it is a controller of a
-- schema version before 4, or one whose registration is missing; else it is gone.
-- no seq, no name: rows on that engine that name no controller.
with here as materialized (
    select sandbox_connected_v5() as names
), held as materialized (
    select distinct engine, claimed_by as name from sandboxes
    where engine is not null and (state in ('launching', 'running') or finished_at is not null and cleaned_at is null)
)
select c.engine, c.name, c.seq, c.name = any (here.names) as connected, c.sees, c.looks from sandbox_controllers c, here
union all
select h.engine, h.name, null, coalesce(h.name = any (here.names), false), '{}', 0 from held h, here
where not exists (select from sandbox_controllers c where c.name = h.name and c.engine = h.engine);

-- visible --
-- Whether the server knows this controller's connections by its name.
select %(me)s = any ((select sandbox_connected_v5())::text[]) as visible;

-- unknown --
-- Those of these controllers that are neither registered nor connected.
select n.name from unnest(%(names)s::text[]) as n (name)
where not exists (select from sandbox_controllers c where c.name = n.name)
  and n.name <> all ((select sandbox_connected_v5())::text[]);
