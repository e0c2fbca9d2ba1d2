-- The statements about whose this database is. A controller asks the first; the others are `migrate`'s, the owner's.

-- identify --
-- This database's own id, and whether it is 'own', 'renewed' or 'foreign' (see sandbox_identify_v5).
select id, standing from sandbox_identify_v5();

-- connected --
-- The controllers that are connected to this database.
select name from sandbox_controllers
where name = any ((select sandbox_connected_v5())::text[])
order by seq;

-- copied --
-- The original lives on: takes a new id, and lets go of what is the original's.
select sandbox_copied() as touched;

-- moved --
-- The original is gone: keeps the id.
select sandbox_moved();
