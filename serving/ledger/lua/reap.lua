-- Settles holds whose lease is over at their prompt and what was noted last. ARGV: time, most at once.
-- Answers: ok, how many.

local due = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', int(NOW_US), 'LIMIT', 0, ARGV[2])
for _, name in ipairs(due) do
  local hold = find_hold(name)
  if hold and hold.state == 'open' then
    close(hold, tonumber(hold.prompt), 0, tonumber(hold.noted), 'reaped', 'reaped')
  else
    redis.call('ZREM', KEYS[1], name)
  end
end
return {'ok', #due}
