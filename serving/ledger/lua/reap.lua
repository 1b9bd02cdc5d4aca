-- Settles holds whose lease is over at their prompt and what was noted last. ARGV: time, most at once.
-- Answers: ok, how many.
-- Parts: calendar meter posting tab credit resolve

local due = call('ZRANGEBYSCORE', KEYS[1], '-inf', NOW_US, 'LIMIT', 0, ARGV[2])
for _, name in ipairs(due) do
  local known = call('GET', SLOT .. 'hold:' .. name)
  local $hold
  if known then $hold = unpack(known) end
  if status == 'open' then
    resolve(name, {known}, nil, 'reaped', 'reaped', prompt, 0, noted)
  else
    call('ZREM', KEYS[1], name)
  end
end
return {'ok', #due}
