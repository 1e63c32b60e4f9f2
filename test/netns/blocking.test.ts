// No thread that serves waits for a disk or another program (K1): the system calls of both main threads, while the gateway works.
import { expect } from 'bun:test'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { testIf } from '../support.ts'
import { forward, Gateway, until } from './gateway.ts'
import { Lab } from './lab.ts'
import { echoBackend, visit } from './traffic.ts'

/** Starting nft looks for it in PATH, and does not wait for its end; the metrics of the process itself come from /proc. */
const MAY_CONTROL = [
  /^---/,
  /^stat\("[^"]*\/nft"/,
  /^(?:vfork|clone3?)\(/,
  /^wait4\(.*WNOHANG/,
  /^openat\(AT_FDCWD, "\/proc\/self\/statm?"/,
  /^newfstatat\(\d+, ""/,
]

testIf(Bun.which('strace') !== null, 'needs strace')(
  'K1: while it serves and changes, no main thread opens a file or waits for one, or for another program',
  async () => {
    await using lab = await Lab.create()
    const echo = echoBackend(lab.backend)
    const to = [{ host: lab.backend.address4, port: echo.port }]
    const routes = [
      forward('kernel', 8400, to),
      forward('user', 8401, to, { forwardingEngine: 'user' }),
      forward('tls', 8443, to, { tls: { mode: 'terminate', certificate: 'self-signed' } }),
    ]
    await using gateway = await Gateway.start(lab, routes)
    const host = lab.gateway.clientSide4
    const work = async (round: number) => {
      for (const port of [8400, 8401]) for (let i = 0; i < 20; i++) await visit(lab.client, host, port)
      for (const path of ['/v1/status', '/v1/routes', '/v1/connections', '/v1/targets']) await gateway.ask(path)
      await (await fetch('http://sluice/metrics', { unix: gateway.socket } as RequestInit)).text()
      expect((await gateway.putRoutes([...routes, forward('more', 8500 + round, to)])).status).toBe(200)
      await gateway.settled()
      expect((await gateway.reload()).status).toBe(200)
      await gateway.settled()
    }
    // What is loaded on first use has been.
    await work(1)
    const { pid, worker } = await gateway.status()
    const traces = [pid, worker.pid].map((one) => {
      const file = join(gateway.directory, `trace-${one}`)
      const trace = '%file,%process,fsync,fdatasync,getdents64,flock'
      return { file, strace: lab.gateway.spawn(['strace', '-qq', '-e', `trace=${trace}`, '-o', file, '-p', `${one}`]) }
    })
    const traced = (one: number) => readFileSync(`/proc/${one}/status`, 'latin1').includes('TracerPid:\t0') === false
    await until(() => traced(pid) && traced(worker.pid), 5000, 'both are traced')
    await work(2)
    for (const { strace } of traces) {
      strace.kill('SIGINT')
      await strace.exited
    }
    const [control, served] = traces.map(({ file }) => readFileSync(file, 'latin1').split('\n').filter(Boolean))
    expect(served).toEqual([])
    expect(control!.some((call) => /^(?:vfork|clone3?)\(/.test(call))).toBe(true)
    expect(control!.filter((call) => !MAY_CONTROL.some((may) => may.test(call)))).toEqual([])
  },
  60_000,
)
