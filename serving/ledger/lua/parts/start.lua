-- What every script begins with. KEYS[1] is the index of open holds of one slot, `TAG:due`; all other keys are of the
-- same slot. ARGV[1] is the time in microseconds, or '' for the server's own.
-- The keys: docs/ledger.md; the fields of records: layout.toml; the exact meaning of every step: memory.py.
-- A function is made anew in each call, so a script names the parts it needs. Redis writes a number among a command's
-- arguments exactly, and answers whole ones as integers; `..` would round them.

local call, pack, unpack = redis.call, cmsgpack.pack, cmsgpack.unpack
local floor, ceil, max, min, format = math.floor, math.ceil, math.max, math.min, string.format
local DAY_MS, MINUTE_US, REMEMBER_S, NEVER = 86400000, 60000000, '86400', 9007199254740992
local SLOT = string.sub(KEYS[1], 1, -4)
local NOW_US
if ARGV[1] ~= '' then
  NOW_US = tonumber(ARGV[1])
else
  local time = call('TIME')
  NOW_US = time[1] * 1000000 + time[2]
end
local NOW_MS = floor(NOW_US / 1000)

