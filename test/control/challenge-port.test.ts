// When the port on which a CA looks is read, and when it goes its usual way again.
import { expect, test } from 'bun:test'
import { ChallengePort } from '../../src/control/challenge-port.ts'
import { until } from '../netns/gateway.ts'

/** Each change ends when the test says so. */
function port(lingerMs = 1) {
  const asked: boolean[] = []
  const ends: ((error?: Error) => void)[] = []
  const failures: string[] = []
  const change = (challenging: boolean) => {
    asked.push(challenging)
    const { promise, resolve, reject } = Promise.withResolvers<void>()
    ends.push((error) => (error ? reject(error) : resolve()))
    return promise
  }
  const failed = (error: Error) => void failures.push(error.message)
  return { asked, ends, failures, port: new ChallengePort(change, failed, lingerMs) }
}

test('F5, F6: names one after the other are one change; a name that comes while the port is given back has it read again', async () => {
  const { asked, ends, port: one } = port()
  const read = one.read()
  await until(() => ends.shift(), 1000, 'it is asked for').then((end) => end())
  await read
  one.leave()
  await one.read()
  expect(asked).toEqual([true])
  one.leave()
  const back = await until(() => ends.shift(), 1000, 'it is given back')
  let isRead = false
  const again = one.read().then(() => (isRead = true))
  expect([asked, isRead]).toEqual([[true, false], false])
  back()
  await until(() => ends.shift(), 1000, 'it is asked for again').then((end) => {
    expect(isRead).toBe(false)
    end()
  })
  await again
  expect(asked).toEqual([true, false, true])
  one.leave()
  one.stop()
})

test('F5: after a change that failed the next one is made whatever it is', async () => {
  const { asked, ends, failures, port: one } = port()
  const failed = one.read().catch((error: Error) => error.message)
  await until(() => ends.shift(), 1000, 'it is asked for').then((end) => end(new Error('no')))
  expect(await failed).toBe('no')
  const read = one.read()
  await until(() => ends.shift(), 1000, 'it is asked for again').then((end) => end())
  await read
  one.leave()
  await until(() => ends.shift(), 1000, 'it is given back').then((end) => end(new Error('not now')))
  await until(() => failures.length > 0, 1000, 'that is told')
  one.leave()
  await until(() => ends.shift(), 1000, 'and tried again').then((end) => end())
  expect([asked, failures]).toEqual([[true, true, false, false], ['not now']])
})
