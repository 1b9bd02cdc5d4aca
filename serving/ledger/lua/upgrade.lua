-- Writes the records of one slot anew that are of the time when each was a hash, and numbers in it were texts: all of
-- the slot or nothing. Who uses the store as it was must not run meanwhile, nor afterwards.
-- ARGV: time. Answers: ok, how many accounts.

local one = call('SRANDMEMBER', SLOT .. 'accounts')
if not one or call('TYPE', SLOT .. 'account:' .. one).ok ~= 'hash' then return {'ok', 0} end

local function number(text) return tonumber(text) or 0 end

local function pairs_of(list)
  local found = {}
  for at = 1, #list, 2 do found[list[at]] = list[at + 1] end
  return found
end

local function usage_of(text)
  local prompt, cached, completion = string.match(text or '', '^(-?%d+):(-?%d+):(-?%d+)$')
  return number(prompt), number(cached), number(completion)
end

local function grant_of(id, text)
  local a, u, h, x, p, from, to, kind = string.match(text, '^(%d+):(%d+):(%d+):(%d+):(-?%d+):(%d+):(%d+):(%a+)$')
  return pack(id, number(a), number(u), number(h), number(x), number(p), number(from), number(to), kind)
end

local function upgrade_grants(of_account)
  local live, live_at, past_at = {}, SLOT .. 'grants:' .. of_account, SLOT .. 'past:' .. of_account
  for id, text in pairs(pairs_of(call('HGETALL', live_at))) do live[#live + 1] = grant_of(id, text) end
  call('SET', live_at, table.concat(live))
  for id, text in pairs(pairs_of(call('HGETALL', past_at))) do call('HSET', past_at, id, grant_of(id, text)) end
end

local function upgrade_key(id)
  local known = pairs_of(call('HGETALL', SLOT .. 'key:' .. id))
  local $key
  key_account, key_cap, key_expires = known.account, tonumber(known.cap) or '', number(known.expires)
  key_revoked, key_last, key_used = number(known.revoked), number(known.last), number(known.used)
  key_held, tab = number(known.held), ''
  local $label
  key_name, key_shown, key_digest = known.name, known.shown, known.digest
  key_created, key_models = number(known.created), known.models
  call('MSET', SLOT .. 'key:' .. id, pack($key), SLOT .. 'label:' .. id, pack($label))
end

local function upgrade_postings(of_account)
  local postings_at = SLOT .. 'postings:' .. of_account
  local anew = postings_at .. ':anew'
  for _, entry in ipairs(call('XRANGE', postings_at, '-', '+')) do
    local known = pairs_of(entry[2])
    local p, c, o = usage_of(known.usage)
    call('XADD', anew, entry[1], 'p', pack(
      number(known.at), known.kind, number(known.amount), known.grant or '', known.request or '', known.key or '',
      known.model or '', number(known.cost), p, c, o, known.reason or ''
    ))
  end
  if call('EXISTS', anew) == 1 then call('RENAME', anew, postings_at) end
end

local function upgrade_account(of_account)
  local account_at = SLOT .. 'account:' .. of_account
  local known = pairs_of(call('HGETALL', account_at))
  local $account
  plan, state, created, used = known.plan, known.state, number(known.created), number(known.used)
  held, running, requests_at, tokens_at = number(known.held), number(known.running), number(known.rq), number(known.tk)
  -- The next hold looks at all grants, and finds which one is the first.
  steady_until, given_plan, given_until, first = 0, '', 0, ''
  call('SET', account_at, pack($account))
  upgrade_grants(of_account)
  upgrade_postings(of_account)
  for _, id in ipairs(call('SMEMBERS', SLOT .. 'keys:' .. of_account)) do upgrade_key(id) end
end

local function upgrade_hold(hold_at)
  local known, expires_in = pairs_of(call('HGETALL', hold_at)), call('PTTL', hold_at)
  local $hold
  status, account, key, model = known.state, known.account, known.key, known.model
  local asked_text, plan_text = string.match(known.payload or '', '|%d+|(%d+)|%d+|%d+|%d+|([^|]*)$')
  asked, asked_plan = tonumber(asked_text), plan_text or ''
  prompt, noted = tonumber(known.prompt), number(known.noted)
  price_in, price_cached, price_out = tonumber(known['in']), tonumber(known.cached), tonumber(known.out)
  tpm, granted, bound, amount = tonumber(known.tpm) or '', tonumber(known.granted), number(known.bound), number(known.amount)
  held_requests_at, held_tokens_at = number(known.rq), number(known.tk)
  local shared = {}
  for share, id in string.gmatch(known.parts or '', '(%d+)=([^;]+)') do shared[#shared + 1] = pack(id, number(share)) end
  shares = table.concat(shared)
  cost = number(known.cost)
  used_prompt, used_cached, used_completion = usage_of(known.usage)
  call('SET', hold_at, pack($hold))
  if expires_in > 0 then call('PEXPIRE', hold_at, expires_in) end
end

local function upgrade_day(day_at)
  for line, text in pairs(pairs_of(call('HGETALL', day_at))) do
    local r, p, c, o, m = string.match(text, '^(-?%d+):(-?%d+):(-?%d+):(-?%d+):(-?%d+)$')
    call('HSET', day_at, line, pack(number(r), number(p), number(c), number(o), number(m)))
  end
end

local accounts = call('SMEMBERS', SLOT .. 'accounts')
for _, name in ipairs(accounts) do upgrade_account(name) end
for _, hold_at in ipairs(call('KEYS', SLOT .. 'hold:*')) do upgrade_hold(hold_at) end
for _, day_at in ipairs(call('KEYS', SLOT .. 'day:*')) do upgrade_day(day_at) end
return {'ok', #accounts}
