// What a Redis does for the store in one step each, in its own language.

/** Each change has a number of its own, kept by key in a sorted set ("!" before a key that was deleted), so that who missed messages can
 *  ask what changed since. The clock is in it because a Redis that lost its memory must not count from the beginning again: what is new
 *  would look old. */
const changed = (now: string, before: string) => `
redis.call('ZREM', KEYS[2], ${before})
local time = redis.call('TIME')
local last = redis.call('ZRANGE', KEYS[2], -1, -1, 'WITHSCORES')
local number = string.format('%.0f', math.max(time[1] * 1000000 + time[2], tonumber(last[2] or 0) + 1))
redis.call('ZADD', KEYS[2], number, ${now})
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - ARGV[2])
redis.call('PUBLISH', ARGV[3], number)
return 1`

/** KEYS: entry, changes, index. ARGV: key, changes that are kept, channel, text, life in ms or "0", "new" to leave alone what is there. */
export const PUT = `
if ARGV[6] == 'new' and redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if ARGV[5] == '0' then redis.call('SET', KEYS[1], ARGV[4]) else redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5]) end
redis.call('ZADD', KEYS[3], 0, ARGV[1])
${changed(`ARGV[1]`, `'!' .. ARGV[1]`)}`

/** KEYS and the first three of ARGV as above. */
export const DELETE = `
redis.call('ZREM', KEYS[3], ARGV[1])
if redis.call('DEL', KEYS[1]) == 0 then return 0 end
${changed(`'!' .. ARGV[1]`, `ARGV[1]`)}`

/** One page of the keys that begin so, from the index: SCAN would go through all that others keep in the same Redis. What has ended by
 *  itself leaves the index here. KEYS: index. ARGV: first, last, keys of a page, what stands before an entry's key. Answers the last key
 *  that was looked at and those that are there. */
export const LIST = `
local found = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3])
local keys = {}
for _, key in ipairs(found) do
  if redis.call('EXISTS', ARGV[4] .. key) == 1 then keys[#keys + 1] = key else redis.call('ZREM', KEYS[1], key) end
end
return {found[#found] or '', keys}`

/** KEYS: lock. ARGV: token, life in ms. 0: another has it, or nobody. */
export const RENEW = `
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])`

/** KEYS: lock. ARGV: token. */
export const RELEASE = `
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])`
