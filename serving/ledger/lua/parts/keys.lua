-- A key as people see it: id, account, name, shown, digest, created, models, cap, expiry, revoked, last, used, held.
local function key_row(id)
  local found = call('MGET', SLOT .. 'key:' .. id, SLOT .. 'label:' .. id)
  if not found[1] then return nil end
  local $key = unpack(found[1])
  local $label = unpack(found[2])
  return {
    id, key_account, key_name, key_shown, key_digest, key_created, key_models, key_cap, key_expires, key_revoked,
    key_last, key_used, key_held,
  }
end

