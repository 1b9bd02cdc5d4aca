-- What all scripts share; it is put before each of them. KEYS[1] is the index of open holds of one slot, and tells the
-- slot's tag; all other keys are of the same slot. ARGV[1] is the time in microseconds, or '' for the server's own.
-- The layout of the keys and the exact meaning of every step: docs/ledger.md; the readable twin: memory.py.
-- Numbers are whole and below 2^53; `int` writes them without an exponent.

local TAG = string.match(KEYS[1], '^{[^}]*}')
local DAY_S, MINUTE_US = 86400, 60000000
local REMEMBER_S = 86400
local REQUESTS, TOKENS = 'rq', 'tk'
local floor, ceil, max, min = math.floor, math.ceil, math.max, math.min

local function clock()
  if ARGV[1] ~= '' then return tonumber(ARGV[1]) end
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000000 + tonumber(time[2])
end

local NOW_US = clock()
local NOW_MS = floor(NOW_US / 1000)

local function int(number) return string.format('%.0f', number) end

local function key_of(kind, name) return TAG .. ':' .. kind .. ':' .. name end

-- Days since 1970 <-> civil dates. Source: H. Hinnant, "chrono-compatible low-level date algorithms", 2021.
local function civil(days)
  local shifted = days + 719468
  local era = floor(shifted / 146097)
  local day_of_era = shifted - era * 146097
  local leaps = floor(day_of_era / 1460) - floor(day_of_era / 36524) + floor(day_of_era / 146096)
  local year_of_era = floor((day_of_era - leaps) / 365)
  local day_of_year = day_of_era - (365 * year_of_era + floor(year_of_era / 4) - floor(year_of_era / 100))
  local month_index = floor((5 * day_of_year + 2) / 153)
  local month = month_index < 10 and month_index + 3 or month_index - 9
  local year = year_of_era + era * 400 + (month <= 2 and 1 or 0)
  return year, month, day_of_year - floor((153 * month_index + 2) / 5) + 1
end

local function days_of(year, month)
  if month <= 2 then year = year - 1 end
  local era = floor(year / 400)
  local year_of_era = year - era * 400
  local day_of_year = floor((153 * (month > 2 and month - 3 or month + 9) + 2) / 5)
  return era * 146097 + year_of_era * 365 + floor(year_of_era / 4) - floor(year_of_era / 100) + day_of_year - 719468
end

local function today()
  return string.format('%04d-%02d-%02d', civil(floor(NOW_MS / 1000 / DAY_S)))
end

-- The value of a reply that may be missing or empty.
local function number_or(text, otherwise)
  if not text or text == '' then return otherwise end
  return tonumber(text)
end

-- Postings -----------------------------------------------------------------------------------------------------------

local function post(account, kind, amount, ...)
  redis.call('XADD', key_of('postings', account), '*', 'at', int(NOW_MS), 'kind', kind, 'amount', int(amount), ...)
end

-- Adds to the totals of today of one key and model: requests, prompt, cached and completion tokens, cost.
local function add_to_day(account, key, model, requests, prompt, cached, completion, cost)
  local day, field = key_of('day', account .. ':' .. today()), key .. '|' .. model
  local before = redis.call('HGET', day, field)
  if before then
    local r, p, c, o, m = string.match(before, '^(-?%d+):(-?%d+):(-?%d+):(-?%d+):(-?%d+)$')
    requests, prompt, cached, completion, cost = requests + r, prompt + p, cached + c, completion + o, cost + m
  end
  local total = string.format('%.0f:%.0f:%.0f:%.0f:%.0f', requests, prompt, cached, completion, cost)
  redis.call('HSET', day, field, total)
end

-- Grants -------------------------------------------------------------------------------------------------------------
-- A field of the hash of an account's grants: amount:used:held:expired:priority:effective_ms:expires_ms:kind.

local function read_grant(id, text)
  local a, u, h, x, p, from, to, kind = string.match(text, '^(%d+):(%d+):(%d+):(%d+):(-?%d+):(%d+):(%d+):(%a+)$')
  return {
    id = id, amount = tonumber(a), used = tonumber(u), held = tonumber(h), expired = tonumber(x),
    priority = tonumber(p), effective = tonumber(from), expires = tonumber(to), kind = kind,
  }
end

local function free_of(grant) return grant.amount - grant.used - grant.held - grant.expired end

local function is_over(grant) return grant.expires ~= 0 and grant.expires <= NOW_MS end

-- Writes a grant back. One of which nothing is free or held any more goes to the past, where no hold looks.
local function write_grant(account, grant)
  local text = string.format(
    '%.0f:%.0f:%.0f:%.0f:%.0f:%.0f:%.0f:%s', grant.amount, grant.used, grant.held, grant.expired, grant.priority,
    grant.effective, grant.expires, grant.kind
  )
  if grant.held == 0 and free_of(grant) == 0 then
    redis.call('HDEL', key_of('grants', account), grant.id)
    redis.call('HSET', key_of('past', account), grant.id, text)
  else
    if grant.past then redis.call('HDEL', key_of('past', account), grant.id) end
    redis.call('HSET', key_of('grants', account), grant.id, text)
  end
end

-- What is free of a grant that is over expires.
local function expire(account, grant)
  local gone = free_of(grant)
  if gone > 0 then
    grant.expired = grant.expired + gone
    post(account, 'expire', -gone, 'grant', grant.id)
  end
end

local function find_grant(account, id)
  local text = redis.call('HGET', key_of('grants', account), id)
  if text then return read_grant(id, text) end
  text = redis.call('HGET', key_of('past', account), id)
  if not text then return nil end
  local grant = read_grant(id, text)
  grant.past = true
  return grant
end

local function give(account, grant)
  post(account, 'grant', grant.amount, 'grant', grant.id)
  if is_over(grant) then expire(account, grant) end
  write_grant(account, grant)
end

local function consumed_before(one, other)
  if one.priority ~= other.priority then return one.priority < other.priority end
  if one.expires ~= other.expires then
    return other.expires == 0 or (one.expires ~= 0 and one.expires < other.expires)
  end
  return one.id < other.id
end

-- All live grants in the order of consumption, those that are over expired; a metered plan's month's grant is made.
local function live_grants(account, plan, monthly)
  local fields = redis.call('HGETALL', key_of('grants', account))
  local grants, wanted = {}, nil
  if monthly > 0 then
    local year, month = civil(floor(NOW_MS / 1000 / DAY_S))
    wanted = string.format('plan:%04d-%02d:%s', year, month, plan)
  end
  for at = 1, #fields, 2 do
    local grant = read_grant(fields[at], fields[at + 1])
    if grant.id == wanted then wanted = nil end
    if is_over(grant) and free_of(grant) > 0 then
      expire(account, grant)
      write_grant(account, grant)
    end
    grants[#grants + 1] = grant
  end
  if wanted and redis.call('HEXISTS', key_of('past', account), wanted) == 0 then
    local year, month = civil(floor(NOW_MS / 1000 / DAY_S))
    local next_year, next_month = year + floor(month / 12), month % 12 + 1
    local grant = {
      id = wanted, amount = monthly, used = 0, held = 0, expired = 0, priority = 10, kind = 'plan',
      effective = days_of(year, month) * DAY_S * 1000, expires = days_of(next_year, next_month) * DAY_S * 1000,
    }
    give(account, grant)
    grants[#grants + 1] = grant
  end
  if #grants > 1 then table.sort(grants, consumed_before) end
  return grants
end

local function usable(grant) return grant.effective <= NOW_MS and not is_over(grant) and free_of(grant) or 0 end

-- Adds up to `amount` to `field` of the grants that can be used, in order. Returns what was taken and from which.
local function take(account, grants, amount, field)
  local left, parts = amount, {}
  for _, grant in ipairs(grants) do
    local part = min(usable(grant), left)
    if part > 0 then
      grant[field] = grant[field] + part
      write_grant(account, grant)
      parts[#parts + 1] = int(part) .. '=' .. grant.id
      left = left - part
    end
  end
  return amount - left, table.concat(parts, ';')
end

local function parts_of(text)
  local parts = {}
  for amount, id in string.gmatch(text, '(%d+)=([^;]+)') do parts[#parts + 1] = {tonumber(amount), id} end
  return parts
end

-- Requests -----------------------------------------------------------------------------------------------------------

-- Moves the time at which a rate is worn off. Limits are tokens or requests a minute; '' is none.
local function wear(full_at, limit, uses)
  return max(full_at, NOW_US) + floor(uses * MINUTE_US / limit)
end

local function cost_of(price_in, price_cached, price_out, prompt, cached, completion)
  return ceil(((prompt - cached) * price_in + cached * price_cached + completion * price_out) / 1000)
end

local HOLD_FIELDS = {
  'state', 'account', 'key', 'model', 'in', 'cached', 'out', 'bound', 'amount', 'parts', 'prompt', 'noted', 'tpm',
  'cost', 'usage',
}

-- Accounts choose the ids of their requests: `name` is ACCOUNT:REQUEST, as the index of open holds has it, too.
local function find_hold(name)
  local values = redis.call('HMGET', key_of('hold', name), unpack(HOLD_FIELDS))
  if not values[1] then return nil end
  local hold = {name = name, request = string.sub(name, #values[2] + 2)}
  for at, field in ipairs(HOLD_FIELDS) do hold[field] = values[at] or '' end
  return hold
end

local function cost_within(hold, prompt, cached, completion)
  return min(cost_of(hold['in'], hold.cached, hold.out, prompt, cached, completion), tonumber(hold.bound))
end

local function write_usage(prompt, cached, completion)
  return string.format('%.0f:%.0f:%.0f', prompt, cached, completion)
end

local function read_usage(text)
  local prompt, cached, completion = string.match(text, '^(%d+):(%d+):(%d+)$')
  return tonumber(prompt), tonumber(cached), tonumber(completion)
end

-- Puts `back` microcredits of what was taken back into the grants they came from, the last one first; what returns to a
-- grant that is over expires. `field` is held or used.
local function give_back(account, grants, parts, back, field)
  local by_id = {}
  for _, grant in ipairs(grants) do by_id[grant.id] = grant end
  for at = #parts, 1, -1 do
    local part = min(parts[at][1], back)
    if part > 0 then
      local grant = by_id[parts[at][2]] or find_grant(account, parts[at][2])
      grant[field] = grant[field] - part
      if is_over(grant) then expire(account, grant) end
      write_grant(account, grant)
      back = back - part
    end
  end
end

-- Turns what is held into what is used, the first parts first. Returns what was used of which grants, as text.
local function consume(account, grants, parts, cost)
  local by_id, spent = {}, {}
  for _, grant in ipairs(grants) do by_id[grant.id] = grant end
  for _, part in ipairs(parts) do
    local grant, used = by_id[part[2]], min(part[1], cost)
    grant.held, grant.used, cost = grant.held - part[1], grant.used + used, cost - used
    if is_over(grant) then expire(account, grant) end
    write_grant(account, grant)
    if used > 0 then spent[#spent + 1] = int(used) .. '=' .. part[2] end
  end
  return table.concat(spent, ';')
end

-- Closes an open hold in `state`: settled, released or reaped. Returns the cost.
local function close(hold, prompt, cached, completion, reason, state)
  local account, bound, amount = hold.account, tonumber(hold.bound), tonumber(hold.amount)
  local cost = cost_within(hold, prompt, cached, completion)
  local grants = live_grants(account, '', 0)
  local taken = amount > 0 and cost or 0
  local spent = consume(account, grants, parts_of(hold.parts), taken)
  redis.call('ZREM', KEYS[1], hold.name)
  local account_key, key_key = key_of('account', account), key_of('key', hold.key)
  local sums = redis.call('HMGET', account_key, 'used', 'held', 'running', TOKENS)
  local changes = {'used', int(sums[1] + cost), 'held', int(sums[2] - amount), 'running', int(sums[3] - 1)}
  local of_key = redis.call('HMGET', key_key, 'used', 'held')
  local key_changes = {'used', int(of_key[1] + cost), 'held', int(of_key[2] - bound)}
  local usage = write_usage(prompt, cached, completion)
  if state ~= 'released' then
    if hold.tpm ~= '' then
      changes[7], changes[8] = TOKENS, int(wear(number_or(sums[4], 0), tonumber(hold.tpm), completion))
    end
    key_changes[5], key_changes[6] = 'last', int(NOW_MS)
    post(
      account, 'charge', -taken, 'cost', int(cost), 'usage', usage, 'request', hold.request, 'key', hold.key,
      'model', hold.model, 'reason', reason
    )
    add_to_day(account, hold.key, hold.model, 1, prompt, cached, completion, cost)
  end
  redis.call('HSET', account_key, unpack(changes))
  redis.call('HSET', key_key, unpack(key_changes))
  local record = key_of('hold', hold.name)
  redis.call('HSET', record, 'state', state, 'cost', int(cost), 'usage', usage, 'parts', spent)
  redis.call('EXPIRE', record, REMEMBER_S)
  return cost
end

-- A settle after the reaper's: the difference, once. Returns the cost that stands in the end.
local function correct(hold, prompt, cached, completion, reason)
  local account, before = hold.account, tonumber(hold.cost)
  local difference = cost_within(hold, prompt, cached, completion) - before
  local p, c, o = read_usage(hold.usage)
  p, c, o = prompt - p, cached - c, completion - o
  local grants, moved = live_grants(account, '', 0), 0
  if tonumber(hold.amount) > 0 then
    if difference > 0 then
      difference = take(account, grants, difference, 'used')
    else
      give_back(account, grants, parts_of(hold.parts), -difference, 'used')
    end
    moved = difference
  end
  if p ~= 0 or c ~= 0 or o ~= 0 then
    redis.call('HINCRBY', key_of('account', account), 'used', int(difference))
    redis.call('HINCRBY', key_of('key', hold.key), 'used', int(difference))
    post(
      account, 'correction', -moved, 'cost', int(difference), 'usage', write_usage(p, c, o), 'request', hold.request,
      'key', hold.key, 'model', hold.model, 'reason', reason
    )
    add_to_day(account, hold.key, hold.model, 0, p, c, o, difference)
  end
  local record, usage = key_of('hold', hold.name), write_usage(prompt, cached, completion)
  redis.call('HSET', record, 'state', 'settled', 'cost', int(before + difference), 'usage', usage)
  redis.call('EXPIRE', record, REMEMBER_S)
  return before + difference
end
