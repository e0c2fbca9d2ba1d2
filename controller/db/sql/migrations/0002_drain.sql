-- `drain` runs as sandbox_controller, which writes no request, and so could not ask for the end of anything.

-- Asks for the end of everything that has not ended and that nobody else holds; returns of how many. The three states,
-- spelled out, are three partial indexes.
create function sandbox_cancel_all() returns integer
language plpgsql volatile security definer set search_path = pg_catalog, public, pg_temp
as $$
declare
    asked integer;
begin
    with wanted as materialized (
        select id from public.sandboxes
        where (state = 'queued' and retry_at is null or state = 'queued' and retry_at is not null
               or state in ('launching', 'running')) and cancel_requested_at is null
        for no key update skip locked
    )
    update public.sandboxes set cancel_requested_at = public.sandbox_now()
    where id = any (array(select w.id from wanted w));
    get diagnostics asked = row_count;
    return asked;
end $$;

revoke all on function sandbox_cancel_all from public;
grant execute on function sandbox_cancel_all to sandbox_controller;
