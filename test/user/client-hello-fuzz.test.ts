// Mutated ClientHellos: whatever arrives, the parser answers, looks at nothing outside the input, and does not change its mind.
// SLUICE_FUZZ=1000000 runs longer, SLUICE_SEED=n repeats a run: a failure prints both the seed and the input.
import { expect, test } from 'bun:test'
import { peekClientHello } from '../../src/user/peek/client-hello.ts'
import { isHostName } from '../../src/base/addresses.ts'
import {
  alpn,
  bytes,
  extension,
  fromRecords,
  guarded,
  hello,
  helloMessage,
  inRecords,
  random,
  sni,
  vector,
  versions,
} from './hellos.ts'

const RUNS = Number(process.env.SLUICE_FUZZ ?? 200_000)
const SEED = Number(process.env.SLUICE_SEED ?? Date.now() % 2 ** 32)

const browser = [
  sni('www.example.com'),
  alpn('h2', 'http/1.1'),
  versions(0x1a1a, 0x0304, 0x0303),
  extension(0xfe0d, [0], new Uint8Array(60)),
]
const CORPUS = [
  hello(...browser),
  hello(extension(0xaaaa), ...browser, extension(51, new Uint8Array(38)), extension(21, new Uint8Array(200))),
  hello(sni('a.test'), alpn('acme-tls/1')),
  inRecords(helloMessage({})),
  inRecords(helloMessage({ sessionId: new Uint8Array(32), extensions: browser }), 40),
  inRecords(helloMessage({ extensions: browser }), 1),
  bytes('GET / HTTP/1.1\r\n'),
  bytes([0x80, 0x2e, 1, 0, 2, 0, 0x15]),
]
const EDGES = [0, 1, 2, 0x7f, 0x80, 0xfe, 0xff, 22, 3]

function mutate(wire: Uint8Array, pick: (below: number) => number): Uint8Array {
  let out = new Uint8Array(wire)
  for (let changes = 1 + pick(4); changes > 0; changes--) {
    const at = pick(out.length || 1)
    const size = 1 + pick(8)
    switch (pick(8)) {
      case 0:
        if (at < out.length) out[at]! ^= 1 << pick(8)
        break
      case 1:
        if (at < out.length) out[at] = EDGES[pick(EDGES.length)]!
        break
      case 2:
        if (at < out.length) out[at] = pick(256)
        break
      case 3:
        out = bytes(out.subarray(0, at), out.subarray(at + size))
        break
      case 4:
        out = bytes(
          out.subarray(0, at),
          Array.from({ length: size }, () => pick(256)),
          out.subarray(at),
        )
        break
      case 5: // a stretch twice: duplicate extensions, names, records
        out = bytes(out.subarray(0, at), out.subarray(at, at + size * 8), out.subarray(at))
        break
      case 6:
        out = out.slice(0, at)
        break
      case 7: // an off-by-one in what may be a length
        if (at < out.length) out[at] = (out[at]! + (pick(2) ? 1 : 255)) & 0xff
        break
    }
  }
  return out
}

/** Changes inside the message, with the lengths around it right again: these reach the inner parsers. */
function mutateInside(wire: Uint8Array, pick: (below: number) => number): Uint8Array {
  if (wire[0] !== 22) return mutate(wire, pick)
  const body = mutate(fromRecords(wire).subarray(4), pick)
  return inRecords(bytes([1], vector(3, body)), 1 + pick(400))
}

test(
  `${RUNS} mutated hellos, seed ${SEED}`,
  () => {
    const pick = random(SEED)
    const verdicts = { more: 0, no: 0, yes: 0 }
    for (let run = 0; run < RUNS; run++) {
      const from = CORPUS[pick(CORPUS.length)]!
      const wire = pick(2) ? mutate(from, pick) : mutateInside(from, pick)
      try {
        verdicts[check(wire, run)]++
      } catch (cause) {
        throw new Error(`SLUICE_SEED=${SEED}, run ${run}, input ${Buffer.from(wire).toString('hex')}: ${cause}`, {
          cause,
        })
      }
    }
    // A generator that only makes rubbish would test nothing.
    if (RUNS >= 10_000) for (const count of Object.values(verdicts)) expect(count).toBeGreaterThan(RUNS / 50)
  },
  // 200,000 take about two seconds; this only ends a parser that loops.
  60_000 + RUNS / 5,
)

/** Plain comparisons: an `expect` for each of millions of inputs costs more than the parser. */
function check(wire: Uint8Array, run: number): 'more' | 'no' | 'yes' {
  const peek = peekClientHello(wire)
  const text = JSON.stringify(peek)
  const same = (other: Uint8Array, what: string) => {
    const now = JSON.stringify(peekClientHello(other))
    if (now !== text) throw new Error(`${what}: ${now} instead of ${text}`)
  }
  if (peek.verdict === 'yes') {
    const { serverName, alpn, versions, length } = peek.hello
    if (!(length > 40 && length <= wire.length)) throw new Error(`length ${length} of ${wire.length}`)
    if (serverName !== undefined && !(isHostName(serverName) && serverName === serverName.toLowerCase()))
      throw new Error(`name ${serverName}`)
    if (alpn.some((name) => name.length < 1 || name.length > 255)) throw new Error(`ALPN ${alpn}`)
    if (versions.some((version) => !Number.isInteger(version) || version < 0 || version > 0xffff))
      throw new Error(`versions ${versions}`)
    same(wire.subarray(0, length), 'without what follows')
    if (peekClientHello(wire.subarray(0, length - 1)).verdict !== 'more') throw new Error('one byte less is not "more"')
  } else if (peek.verdict === 'no') {
    if (!['http', 'sslv2', 'not-tls', 'malformed', 'oversize'].includes(peek.why)) throw new Error(`why ${peek.why}`)
  } else if (peek.verdict !== 'more') throw new Error(`verdict ${text}`)
  if (peek.verdict !== 'more') same(bytes(wire, [1, 2, 3]), 'with more bytes')
  if (run % 16 === 0) same(guarded(wire), 'guarded')
  if (run % 64 === 0 && peek.verdict !== 'more') {
    // Every earlier call said the same or 'more', and once it was decided it stayed so.
    let decided = false
    for (let end = 0; end <= wire.length; end++) {
      const earlier = peekClientHello(wire.subarray(0, end))
      if (earlier.verdict === 'more' && decided) throw new Error(`undecided again at ${end}`)
      if (earlier.verdict === 'more') continue
      decided = true
      same(wire.subarray(0, end), `at ${end}`)
    }
  }
  return peek.verdict
}
