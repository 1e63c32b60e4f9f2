// H5: strings that would be commands if anybody pasted them into one. Every string field refuses them by name, and nft,
// which writes down here all that it is asked and told, hears of none.
import { expect, test } from 'bun:test'
import { existsSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { Lab } from './lab.ts'
import { foreignRules, forward, Gateway, NftStub } from './gateway.ts'
import { echoBackend, Talker } from './traffic.ts'

const POISON = 'p01son'
const HOSTILE = [
  `a; flush ruleset # ${POISON}`,
  `a\nflush ruleset\n${POISON}`,
  `a" }; add table inet ${POISON}`,
  `$(touch ${POISON})`,
  `{ ${POISON} }`,
  `${POISON}'; nft flush ruleset; '`,
  `\u0000${POISON}`,
  `\u001b]0;${POISON}\u0007`,
  `10.0.0.1 . 80 : 0x51000001, ${POISON}`,
  `../${POISON}/..`,
]
/** Free text: taken as it is, and never near nft. Only control characters are refused. */
const FREE = new Set(['admin.socket', 'stateDir', 'log.access', 'routes[0].action.tls.certificate.cert'])

/** Each string field of a configuration, set to `value`. */
const FIELDS: [path: string, make: (value: string) => { config?: object; route?: object }][] = [
  ['routes[0].name', (name) => ({ route: { name } })],
  ['routes[0].match.domains', (domains) => ({ route: { match: { ports: 8400, domains }, action: tls() } })],
  ['routes[0].match.domains[0]', (name) => ({ route: { match: { ports: 8400, domains: [name] }, action: tls() } })],
  ['routes[0].match.addresses[0]', (address) => ({ route: { match: { ports: 8400, addresses: [address] } } })],
  ['routes[0].match.clientIps[0]', (ip) => ({ route: { match: { ports: 8400, clientIps: [ip] } } })],
  ['routes[0].match.ports', (ports) => ({ route: { match: { ports } } })],
  ['routes[0].match.protocol', (protocol) => ({ route: { match: { ports: 8400, protocol } } })],
  ['routes[0].action.targets[0].host', (host) => ({ route: { action: to({ host, port: 1 }) } })],
  ['routes[0].action.targets[0].port', (port) => ({ route: { action: to({ host: '10.99.2.2', port }) } })],
  ['routes[0].action.balance', (balance) => ({ route: { action: to(undefined, { balance }) } })],
  [
    'routes[0].action.forwardingEngine',
    (engine) => ({ route: { action: to(undefined, { forwardingEngine: engine }) } }),
  ],
  ['routes[0].action.tls.mode', (mode) => ({ route: { action: to(undefined, { tls: { mode } }) } })],
  ['routes[0].action.tls.certificate.cert', (cert) => ({ route: { action: certificate(cert) } })],
  ['routes[0].security.ipAllowList[0]', (ip) => ({ route: { security: { ipAllowList: [ip] } } })],
  ['routes[0].security.ipBlockList[0]', (ip) => ({ route: { security: { ipBlockList: [ip] } } })],
  ['routes[0].security.connectionRatePerIp', (rate) => ({ route: { security: { connectionRatePerIp: rate } } })],
  ['routes[0].drain', (drain) => ({ route: { drain } })],
  ['routes[0].timeouts.idle', (idle) => ({ route: { timeouts: { idle } } })],
  ['kernel.table', (table) => ({ config: { kernel: { table } } })],
  ['kernel.onStop', (onStop) => ({ config: { kernel: { onStop } } })],
  ['kernel.markBase', (markBase) => ({ config: { kernel: { markBase } } })],
  ['timeouts.grace', (grace) => ({ config: { timeouts: { grace } } })],
  ['log.level', (level) => ({ config: { log: { level } } })],
  ['log.access', (access) => ({ config: { log: { access } } })],
  ['admin.socket', (socket) => ({ config: { admin: { socket } } })],
  ['stateDir', (stateDir) => ({ config: { stateDir } })],
]

const to = (target: object = { host: '10.99.2.2', port: 1 }, rest: object = {}) => ({
  type: 'forward',
  targets: [target],
  ...rest,
})
const tls = () => to(undefined, { tls: { mode: 'passthrough' } })
const certificate = (cert: string) => to(undefined, { tls: { mode: 'terminate', certificate: { cert, key: cert } } })
// As code points: a control character in an expression is easily misread.
const isControl = (text: string) => [...text].some((letter) => letter.charCodeAt(0) < 32)

test('H5: every hostile string in every field is refused by its path, and nothing of it reaches nft', async () => {
  await using lab = await Lab.create()
  await lab.gateway.nft('table inet keep { chain c { counter\n }\n }')
  // Everything that comes on standard input is written down on its way; -i is interactive and holds the anchor.
  using stub = new NftStub()
  const heard = join(stub.directory, 'stdin')
  stub.mode(`case "$1" in -f) cat > ${heard}.now; cat ${heard}.now >> ${heard}; exec < ${heard}.now;; esac`)
  const backend = echoBackend(lab.backend)
  const good = forward('good', 8400, [{ host: lab.backend.address4, port: backend.port }])
  const before = await foreignRules(lab.gateway)
  await using gateway = await Gateway.start(lab, [good], { env: stub.env })
  const talker = await Talker.connect(lab.client, lab.gateway.clientSide4, 8400)
  await talker.say()

  for (const [path, make] of FIELDS)
    for (const value of HOSTILE) {
      if (FREE.has(path) && !isControl(value)) continue
      const { config = {}, route = {} } = make(value)
      const routes = [{ name: 'r', match: { ports: 8400 }, action: to(), ...route }]
      const where = [path, value]
      // Its own admin and log fields are left out where they are what is hostile.
      gateway.write(routes, config)
      const reloaded = await gateway.reload()
      expect([...where, reloaded.status]).toEqual([...where, 422])
      const problem = reloaded.problems!.find((one) => one.path.startsWith(path) || path.startsWith(one.path))
      if (!problem) throw new Error(`${path}: ${JSON.stringify(value)} is refused as ${Bun.inspect(reloaded.problems)}`)
      expect(isControl(problem.message)).toBe(false)
      expect(problem.message).not.toContain('cannot change')
    }
  // The commands say the same, once for each field: a process each.
  for (const [path, make] of FIELDS) {
    const { config = {}, route = {} } = make(HOSTILE[1]!)
    gateway.write([{ name: 'r', match: { ports: 8400 }, action: to(), ...route }], config)
    const { exitCode, stderr } = await gateway.cli('run', '--check', '--config', gateway.file)
    expect([path, exitCode]).toEqual([path, 2])
    expect(stderr).toContain(path.replace(/\[0\]$/, ''))
  }
  await talker.say()
  expect((await gateway.routes()).map((one) => one.name)).toEqual(['good'])
  expect(await foreignRules(lab.gateway)).toBe(before)
  expect(existsSync(heard)).toBe(true)
  for (const text of [readFileSync(heard, 'utf8'), stub.calls().join('\n')]) {
    expect(text).not.toContain(POISON)
    expect(text).not.toContain('flush')
  }
  await talker.close()
}, 60_000)
