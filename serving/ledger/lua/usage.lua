-- What the keys of an account used on some days. ARGV: time, account, days (YYYY-MM-DD), ...
-- Answers: ok, then for each day, key and model: day, KEY|MODEL, requests, prompt, cached, completion, cost. A day may
-- have a line twice, from its totals and from the key's tab: they add up.
-- Parts: calendar

local answer, days, civil = {'ok'}, {}, calendar()
for at = 3, #ARGV do
  days[ARGV[at]] = true
  local lines = call('HGETALL', SLOT .. 'day:' .. ARGV[2] .. ':' .. ARGV[at])
  for line = 1, #lines, 2 do answer[#answer + 1] = {ARGV[at], lines[line], unpack(lines[line + 1])} end
end
for _, id in ipairs(call('SMEMBERS', SLOT .. 'keys:' .. ARGV[2])) do
  local $key = unpack(call('GET', SLOT .. 'key:' .. id))
  if tab ~= '' then
    local $tab = unpack(tab)
    local day = format('%04d-%02d-%02d', civil(tab_day))
    if days[day] then
      answer[#answer + 1] = {
        day, id .. '|' .. tab_model, tab_requests, tab_prompt, tab_cached, tab_completion, tab_cost,
      }
    end
  end
end
return answer
