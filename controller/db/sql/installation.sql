-- The statements of `migrate` about whose this database is; the owner's.

-- connected --
-- The controllers that are connected to this database.
select name from sandbox_controllers
where name = any ((select sandbox_connected())::text[])
order by seq;

-- copied --
-- The original lives on: takes a new id, and lets go of what is the original's.
select sandbox_copied() as touched;

-- moved --
-- The original is gone: keeps the id.
select sandbox_moved();
