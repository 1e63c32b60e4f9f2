// The laboratory itself: traffic passes through its gateway in both families, namespaces are really apart, failures are
// told, and nothing is left of it afterwards.
import { expect, test } from 'bun:test'
import { existsSync, readdirSync, readlinkSync } from 'node:fs'
import { Lab, type Namespace } from './lab.ts'

/** What `to` says when `text` is sent to it: everything until it closes. */
function exchange(from: Namespace, host: string, port: number, text: string): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>()
  let answer = ''
  from
    .connect(host, port, {
      open: (socket) => void socket.write(text),
      data: (_, bytes) => void (answer += bytes),
      close: (_, error) => (error ? reject(error) : resolve(answer)),
    })
    .catch(reject)
  return promise
}

/** Answers once with what it heard and from where. */
const echo = { data: (socket: Bun.Socket, bytes: Buffer) => void socket.end(`${socket.remoteAddress} said ${bytes}`) }

test('a connection crosses the gateway, in both families, once the gateway forwards', async () => {
  await using lab = await Lab.create()
  const { port } = lab.backend.listen(echo)

  await expect(lab.client.connect(lab.backend.address4, port, {}, { timeoutMs: 200 })).rejects.toThrow('timed out')
  lab.gateway.forward()
  expect(await exchange(lab.client, lab.backend.address4, port, 'hello')).toContain('10.99.1.2 said hello')
  expect(await exchange(lab.client, lab.backend.address6, port, 'hello')).toBe('fd00:99:1::2 said hello')
})

test('a refused connection is told as refused', async () => {
  await using lab = await Lab.create()
  await expect(lab.client.connect(lab.gateway.clientSide4, 9)).rejects.toThrow('refused')
  await expect(lab.client.connect(lab.gateway.clientSide6, 9)).rejects.toThrow('refused')
})

test('a rule loaded in the gateway moves a connection, and the kernel tracks it', async () => {
  await using lab = await Lab.create()
  lab.gateway.forward()
  const { port } = lab.backend.listen(echo)
  await lab.gateway.nft(`table ip t {
    chain pre { type nat hook prerouting priority dstnat; tcp dport 8400 dnat to ${lab.backend.address4}:${port}; }
    chain post { type nat hook postrouting priority srcnat; masquerade; }
  }`)
  expect(lab.gateway.conntrackCount()).toBe(0)
  expect(await exchange(lab.client, lab.gateway.clientSide4, 8400, 'hello')).toContain('10.99.2.1 said hello')
  expect(lab.gateway.conntrackCount()).toBe(1)
  await expect(lab.gateway.nft('nonsense')).rejects.toThrow('syntax error')
})

test('enter() comes back home, also from a failure, and refuses promises', async () => {
  await using lab = await Lab.create()
  const here = () => readlinkSync('/proc/thread-self/ns/net')
  const home = here()
  expect(lab.client.enter(here)).not.toBe(home)
  const [inner, outer] = lab.client.enter(() => [lab.gateway.enter(here), here()])
  expect(inner).toBe(lab.gateway.enter(here))
  expect(outer).toBe(lab.client.enter(here))
  expect(() => lab.client.enter(() => lab.client.enter(() => JSON.parse('{')))).toThrow()
  expect(() => lab.client.enter(async () => {})).toThrow('synchronous')
  expect(here()).toBe(home)
})

test('several labs live side by side, with the same addresses', async () => {
  const labs = await Promise.all([Lab.create(), Lab.create(), Lab.create()])
  const ports = labs.map((lab) => lab.gateway.listen(echo, { port: 8400 }).port)
  expect(ports).toEqual([8400, 8400, 8400])
  expect(new Set(labs.flatMap((lab) => lab.namespaces.map((n) => n.name))).size).toBe(9)
  for (const lab of labs) expect(await exchange(lab.client, lab.gateway.address4, 8400, 'x')).toContain('said x')
  for (const lab of labs) await lab[Symbol.asyncDispose]()
})

test('nothing is left of a lab, and children are killed', async () => {
  // Only these: Bun keeps the memory file behind a child's stdin until the garbage collector finds it.
  const namespaces = () =>
    readdirSync('/proc/self/fd').filter((fd) => {
      const path = `/proc/self/fd/${fd}`
      return existsSync(path) && readlinkSync(path).startsWith('net:')
    })
  const before = namespaces()
  expect(before).toHaveLength(1)
  let child: Bun.Subprocess, names: string[]
  {
    await using lab = await Lab.create()
    names = lab.namespaces.map((namespace) => namespace.name)
    child = lab.backend.spawn(['sleep', '1000'])
    lab.backend.listen(echo)
    await lab.client.connect(lab.gateway.address4, lab.gateway.listen({ data() {} }).port)
  }
  expect(child.signalCode).toBe('SIGKILL')
  for (const name of names) expect(existsSync(`/run/netns/${name}`)).toBe(false)
  expect(namespaces()).toEqual(before)
})

test('a process that outlives its parent is named when the lab ends', async () => {
  const lab = await Lab.create()
  await lab.client.must(['sh', '-c', 'sleep 1000 >/dev/null 2>&1 &'])
  await expect(lab[Symbol.asyncDispose]()).rejects.toThrow('sleep 1000')
})
