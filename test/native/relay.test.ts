// The native relay on real sockets: every byte once and in order, both kinds of end, and what it does when a peer stalls.
import { afterEach, beforeEach, describe, expect, test } from 'bun:test'
import {
  CLIENT,
  CLOSED,
  E,
  HALF_CLOSED,
  Relay,
  TARGET,
  atRest,
  connected,
  essence,
  hashOf,
  noise,
} from './relay-fixture.ts'
import { until, type Pair } from './relay-fixture.ts'

const KiB = 1024
const MiB = 1024 * KiB

let relay: Relay
beforeEach(async () => {
  relay = await Relay.start()
})
afterEach(() => {
  relay.stop()
})

const canceled = { kind: CLOSED, side: CLIENT, error: E.CANCELED }

/** Sends more to the target than anything between could hold, while the target does not read, and waits until it stands. */
async function stall({ client, target }: Pair, bytes: Uint8Array): Promise<number> {
  target.socket.pause()
  client.send(bytes)
  return atRest(() => client.accepted)
}

describe('bytes', () => {
  test('64 MiB each way at once, equal and counted exactly', async () => {
    const pair = await relay.join()
    const request = noise(1, 64 * MiB)
    const answer = noise(2, 64 * MiB)
    pair.client.send(request)
    pair.client.finish()
    pair.target.send(answer)
    pair.target.finish()
    const closed = await relay.closed(pair)
    await Promise.all([pair.client.ended, pair.target.ended])
    expect(essence(closed)).toEqual({ kind: CLOSED, side: CLIENT, error: 0, bytesIn: 64 * MiB, bytesOut: 64 * MiB })
    expect(pair.target.digest()).toBe(hashOf(request))
    expect(pair.client.digest()).toBe(hashOf(answer))
  }, 30_000)

  test('single bytes go through at once, one after the other', async () => {
    const pair = await relay.join()
    for (let i = 1; i <= 200; i++) {
      pair.client.send(noise(i, 1))
      await pair.target.got(i)
      pair.target.send(noise(i, 1))
      await pair.client.got(i)
    }
    expect(relay.stats(pair)).toMatchObject({ bytesIn: 200, bytesOut: 200 })
  })

  test('initial bytes come first and once, both ways', async () => {
    const hello = noise(3, 1500)
    const banner = noise(4, 70)
    const request = noise(5, 100 * KiB)
    const answer = noise(6, 100 * KiB)
    // Sent before the relay has the sockets: what it finds waiting must still come after the initial bytes.
    const pair = await relay.join(hello, banner, ({ client, target }) => {
      client.send(request)
      target.send(answer)
    })
    pair.client.finish()
    pair.target.finish()
    const { bytesIn, bytesOut } = await relay.closed(pair)
    await Promise.all([pair.client.ended, pair.target.ended])
    expect(pair.target.digest()).toBe(hashOf(hello, request))
    expect(pair.client.digest()).toBe(hashOf(banner, answer))
    expect({ bytesIn, bytesOut }).toEqual({ bytesIn: 1500 + 100 * KiB, bytesOut: 70 + 100 * KiB })
  })

  test('initial bytes that fill the socket many times over are finished when the peer reads', async () => {
    const toTarget = noise(7, 16 * MiB)
    const toClient = noise(8, 12 * MiB)
    const more = noise(9, 10)
    const pair = await relay.join(toTarget, toClient, ({ client, target }) => {
      client.socket.pause()
      target.socket.pause()
    })
    pair.client.send(more)
    pair.client.finish()
    expect(await atRest(() => relay.stats(pair)!.bytesIn)).toBeLessThan(16 * MiB)
    expect(await atRest(() => relay.stats(pair)!.bytesOut)).toBeLessThan(12 * MiB)
    pair.client.socket.resume()
    pair.target.socket.resume()
    pair.target.finish()
    const closed = await relay.closed(pair)
    await Promise.all([pair.client.ended, pair.target.ended])
    expect(closed).toMatchObject({ error: 0, bytesIn: 16 * MiB + 10, bytesOut: 12 * MiB })
    expect(pair.target.digest()).toBe(hashOf(toTarget, more))
    expect(pair.client.digest()).toBe(hashOf(toClient))
  }, 30_000)

  test('a stalled reader stops the writer, and loses nothing when it reads again', async () => {
    const pair = await relay.join()
    const bytes = noise(10, 64 * MiB)
    const accepted = await stall(pair, bytes)
    const { bytesIn } = relay.stats(pair)!
    expect(accepted).toBeLessThan(32 * MiB)
    expect(bytesIn).toBeLessThanOrEqual(accepted)
    // The other way is not held up by it.
    const answer = noise(11, 1 * MiB)
    pair.target.send(answer)
    await pair.client.got(answer.length)
    pair.target.socket.resume()
    pair.client.finish()
    await pair.target.ended
    expect(pair.target.received).toBe(64 * MiB)
    expect(pair.target.digest()).toBe(hashOf(bytes))
  }, 30_000)

  test('2,000 pairs at once keep their bytes apart', async () => {
    const pairs: Pair[] = []
    while (pairs.length < 2000) pairs.push(...(await Promise.all(Array.from({ length: 200 }, () => relay.join()))))
    const request = ({ id }: Pair) => noise(Number(id), 32 * KiB + Number(id))
    const answer = ({ id }: Pair) => noise(-Number(id), 48 * KiB - Number(id))
    for (const pair of pairs) {
      pair.client.send(request(pair))
      pair.target.send(answer(pair))
    }
    for (const pair of pairs) {
      pair.client.finish()
      pair.target.finish()
    }
    for (const pair of pairs) {
      const closed = await relay.closed(pair)
      await Promise.all([pair.client.ended, pair.target.ended])
      const bytesIn = 32 * KiB + Number(pair.id)
      const bytesOut = 48 * KiB - Number(pair.id)
      expect(closed).toMatchObject({ error: 0, bytesIn, bytesOut })
      expect(pair.target.digest()).toBe(hashOf(request(pair)))
      expect(pair.client.digest()).toBe(hashOf(answer(pair)))
    }
  }, 60_000)

  test('urgent data holds nothing up, neither little that is copied nor much that is spliced', async () => {
    for (const size of [100, 4 * MiB]) {
      const pair = await relay.join()
      for (const [sender, receiver] of [
        [pair.client, pair.target],
        [pair.target, pair.client],
      ] as const) {
        receiver.socket.pause()
        sender.send(noise(15, size))
        await atRest(() => sender.accepted)
        sender.sendUrgent() // what is behind it is there before the receiver makes room
        sender.send(noise(16, size))
        await atRest(() => sender.accepted)
        receiver.socket.resume()
        await receiver.got(2 * size)
        expect(receiver.digest()).toBe(hashOf(noise(15, size), noise(16, size)))
      }
      relay.close(pair, 'reset')
    }
  }, 30_000)

  test('what a cut pair left behind never comes out of another', async () => {
    const cut = await Promise.all([relay.join(), relay.join(), relay.join()])
    await Promise.all(cut.map((pair) => stall(pair, noise(12, 16 * MiB))))
    for (const pair of cut) relay.close(pair, 'reset')
    for (const pair of cut) await relay.closed(pair)
    const pair = await relay.join()
    const bytes = noise(13, 1 * MiB)
    const answer = noise(14, 1 * MiB)
    pair.client.send(bytes)
    pair.client.finish()
    pair.target.send(answer)
    pair.target.finish()
    await Promise.all([pair.client.ended, pair.target.ended])
    expect(pair.target.digest()).toBe(hashOf(bytes))
    expect(pair.client.digest()).toBe(hashOf(answer))
  }, 30_000)
})

describe('the end by FIN', () => {
  const sides = [
    ['client', CLIENT],
    ['target', TARGET],
  ] as const

  test.each(sides)(
    '%s first: its FIN comes after all data, and the other direction still flows',
    async (name, side) => {
      const pair = await relay.join()
      const first = pair[name]
      const other = side === CLIENT ? pair.target : pair.client
      const bytes = noise(20, 8 * MiB)
      first.send(bytes)
      first.finish()
      await other.ended
      expect(other.received).toBe(8 * MiB)
      expect(other.digest()).toBe(hashOf(bytes))
      const half = await relay.halfClosed(pair)
      expect(half.side).toBe(side)
      expect(side === CLIENT ? half.bytesIn : half.bytesOut).toBe(8 * MiB)

      const answer = noise(21, 8 * MiB)
      other.send(answer)
      other.finish()
      await first.ended
      expect(first.digest()).toBe(hashOf(answer))
      expect(await relay.closed(pair)).toMatchObject({ error: 0, bytesIn: 8 * MiB, bytesOut: 8 * MiB })
      expect(relay.eventsOf(pair).map((event) => event.kind)).toEqual([HALF_CLOSED, CLOSED])
      expect(await Promise.all([first.closed, other.closed])).toEqual([undefined, undefined])
    },
  )

  // Of a copy, of a splice, and one byte beside each; the FIN is often seen together with the last bytes.
  const sizes = [1, 4095, 4096, 16_383, 16_384, 16_385, 32_768, 262_143, 262_144, 262_145]

  test.each(sizes)('right behind %d bytes, both ways: all arrive, then the FIN', async (size) => {
    for (let round = 0; round < 20; round++) {
      const pair = await relay.join(undefined, undefined, ({ client, target }) => {
        for (const [seed, peer] of [client, target].entries()) {
          // In every other round it is all there before the relay is.
          if (round % 2) peer.send(noise(seed, size))
          if (round % 2) peer.finish()
        }
      })
      for (const [seed, peer] of [pair.client, pair.target].entries()) {
        if (round % 2) continue
        peer.send(noise(seed, size))
        peer.finish()
      }
      expect(await relay.closed(pair)).toMatchObject({ error: 0, bytesIn: size, bytesOut: size })
      await Promise.all([pair.client.ended, pair.target.ended])
      expect([pair.target.digest(), pair.client.digest()]).toEqual([hashOf(noise(0, size)), hashOf(noise(1, size))])
    }
  })

  test('a FIN behind a stalled reader waits for the bytes before it', async () => {
    const pair = await relay.join()
    const bytes = noise(22, 64 * MiB)
    await stall(pair, bytes)
    pair.client.finish()
    expect(relay.eventsOf(pair)).toEqual([])
    pair.target.socket.resume()
    await pair.target.ended
    expect(pair.target.digest()).toBe(hashOf(bytes))
    expect(await relay.halfClosed(pair)).toMatchObject({ side: CLIENT, bytesIn: 64 * MiB })
  }, 30_000)
})

describe('the end by RST', () => {
  const sides = [
    ['client', CLIENT],
    ['target', TARGET],
  ] as const

  test.each(sides)('of the %s reaches the other peer', async (name, side) => {
    const pair = await relay.join()
    pair.client.send(noise(30, 1000))
    await pair.target.got(1000)
    pair[name].reset()
    expect(await pair[side === CLIENT ? 'target' : 'client'].closed).toBe('ECONNRESET')
    const closed = essence(await relay.closed(pair))
    expect(closed).toEqual({ kind: CLOSED, side, error: E.CONNRESET, bytesIn: 1000, bytesOut: 0 })
  })

  test('while half-closed, of the side that still sends', async () => {
    const pair = await relay.join()
    pair.client.finish()
    await pair.target.ended
    pair.target.reset()
    expect(await pair.client.closed).toBe('ECONNRESET')
    expect(await relay.closed(pair)).toMatchObject({ side: TARGET, error: E.CONNRESET })
  })

  test('while half-closed, of the side that had sent its FIN', async () => {
    const pair = await relay.join()
    pair.client.finish()
    await pair.target.ended
    pair.client.reset()
    // EPIPE is the kernel's word for a RST that comes after a FIN, to the target as well as to the relay.
    expect(await pair.target.closed).toBe('EPIPE')
    expect(await relay.closed(pair)).toMatchObject({ side: CLIENT, error: E.PIPE })
  })

  test('is noticed while the other side is stalled', async () => {
    const pair = await relay.join()
    await stall(pair, noise(31, 64 * MiB))
    pair.client.reset()
    expect(await relay.closed(pair)).toMatchObject({ side: CLIENT, error: E.CONNRESET })
    pair.target.socket.resume()
    expect(await pair.target.closed).toBe('ECONNRESET')
  }, 30_000)
})

describe('closing', () => {
  test('with reset: both peers see a RST at once', async () => {
    const pair = await relay.join()
    pair.client.send(noise(40, 10))
    await pair.target.got(10)
    expect(relay.close(pair, 'reset')).toBe(0)
    expect(await Promise.all([pair.client.closed, pair.target.closed])).toEqual(['ECONNRESET', 'ECONNRESET'])
    expect(essence(await relay.closed(pair))).toEqual({ ...canceled, bytesIn: 10, bytesOut: 0 })
    expect(relay.close(pair, 'reset')).toBe(-E.NOENT)
  })

  test('with grace, idle: both peers see a FIN, long before the deadline', async () => {
    const pair = await relay.join()
    expect(relay.close(pair, { graceMs: 3_600_000 })).toBe(0)
    await Promise.all([pair.client.ended, pair.target.ended])
    expect(essence(await relay.closed(pair))).toEqual({ ...canceled, bytesIn: 0, bytesOut: 0 })
    expect(relay.eventsOf(pair)).toHaveLength(1)
  })

  test('with grace: what is in flight is delivered, then the FIN', async () => {
    const pair = await relay.join()
    const bytes = noise(41, 64 * MiB)
    await stall(pair, bytes)
    const { bytesIn } = relay.stats(pair)!
    relay.close(pair, { graceMs: 3_600_000 })
    pair.target.socket.resume()
    await pair.target.ended
    pair.target.finish()
    expect(await pair.target.closed).toBeUndefined()
    const closed = await relay.closed(pair)
    expect(closed).toMatchObject(canceled)
    expect(closed.bytesIn).toBeGreaterThan(bytesIn)
    expect(closed.bytesIn).toBe(pair.target.received)
    expect(pair.target.digest()).toBe(hashOf(bytes.subarray(0, closed.bytesIn)))
  }, 30_000)

  test('with grace: a peer that never reads is cut at the deadline', async () => {
    const pair = await relay.join()
    await stall(pair, noise(42, 64 * MiB))
    const begun = performance.now()
    relay.close(pair, { graceMs: 100 })
    expect(await relay.closed(pair)).toMatchObject(canceled)
    expect(performance.now() - begun).toBeGreaterThanOrEqual(95) // the relay's clock is a few milliseconds coarse
    // Nothing was on its way to the client, so it had its FIN already.
    expect(await pair.client.closed).toBe('EPIPE')
    pair.target.socket.resume()
    expect(await pair.target.closed).toBe('ECONNRESET')
  }, 30_000)

  test('deadlines come in their order, and a reset overtakes them', async () => {
    const [late, early, last] = await Promise.all([relay.join(), relay.join(), relay.join()])
    await Promise.all([late, early, last].map((pair) => stall(pair, noise(43, 32 * MiB))))
    relay.close(late, { graceMs: 200 })
    relay.close(last, { graceMs: 3_600_000 })
    relay.close(early, { graceMs: 50 })
    await relay.closed(early)
    expect(relay.stats(late)).toBeDefined()
    await relay.closed(late)
    expect(relay.stats(last)).toBeDefined()
    relay.close(last, 'reset')
    expect(await relay.closed(last)).toMatchObject(canceled)
  }, 30_000)
})

describe('the thread', () => {
  test('tells the counts of a live pair, and of no other', async () => {
    const pair = await relay.join(noise(50, 5))
    pair.client.send(noise(51, 1000))
    pair.target.send(noise(52, 3000))
    await until(() => relay.stats(pair)!.bytesIn === 1005 && relay.stats(pair)!.bytesOut === 3000)
    expect(relay.stats(pair)!.idleMs).toBeLessThan(10_000)
    relay.close(pair, 'reset')
    await relay.closed(pair)
    expect(relay.stats(pair)).toBeUndefined()
  })

  test('waits with its events for a reader that is behind, and loses none', async () => {
    relay.stopReading()
    // One after the other, so that each is a message of its own and the socket takes fewer than there are.
    const pairs: Pair[] = []
    for (let i = 0; i < 600; i++) {
      const pair = await relay.join()
      relay.close(pair, 'reset')
      await until(() => relay.stats(pair) === undefined)
      pairs.push(pair)
    }
    relay.readAgain()
    for (const pair of pairs) expect(await relay.closed(pair)).toMatchObject(canceled)
    expect(pairs.flatMap(relay.eventsOf)).toHaveLength(600)
  }, 30_000)

  test('tells the last news of a reader that was behind, although nothing happens any more', async () => {
    relay.stop()
    // With so small a socket, one of these numbers is the one whose last message is refused.
    for (let count = 1; count <= 12; count++) {
      relay = await Relay.start(1)
      relay.stopReading()
      const pairs: Pair[] = []
      for (let i = 0; i < count; i++) {
        const pair = await relay.join()
        relay.close(pair, 'reset')
        await until(() => relay.stats(pair) === undefined)
        await Bun.sleep(10) // so that it is a message of its own
        pairs.push(pair)
      }
      relay.readAgain()
      for (const pair of pairs) expect(await relay.closed(pair)).toMatchObject(canceled)
      if (count < 12) relay.stop()
    }
  }, 30_000)

  test('refuses a second pair of the same id, and initial bytes beyond the limit, with a RST', async () => {
    const pair = await relay.join()
    const refused = await Promise.all([connected(), connected()])
    expect(relay.add(pair.id, refused[0].fd, refused[1].fd)).toBe(-E.EXIST)
    const tooMuch = await Promise.all([connected(), connected()])
    expect(relay.add(999n, tooMuch[0].fd, tooMuch[1].fd, new Uint8Array(16 * MiB + 1))).toBe(-E.MSGSIZE)
    for (const { peer } of [...refused, ...tooMuch]) expect(await peer.closed).toBe('ECONNRESET')
    pair.client.send(noise(53, 100))
    await pair.target.got(100)
  })

  test('resets everything when it stops, and can start again', async () => {
    const pair = await relay.join()
    expect(relay.stop()).toBe(0)
    expect(relay.stop()).toBe(-E.SHUTDOWN)
    expect(await Promise.all([pair.client.closed, pair.target.closed])).toEqual(['ECONNRESET', 'ECONNRESET'])
    expect(await relay.closed(pair)).toMatchObject(canceled)
    const late = await Promise.all([connected(), connected()])
    expect(relay.add(1n, late[0].fd, late[1].fd)).toBe(-E.SHUTDOWN)
    expect(await late[0].peer.closed).toBe('ECONNRESET')
    relay = await Relay.start()
    const again = await relay.join()
    again.client.send(noise(54, 100))
    await again.target.got(100)
  })
})
