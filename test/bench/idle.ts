// The load that does nothing: what ten thousand open connections hold of the machine's memory.
import { type Context, IDLE_PORT, type Load, type Sample } from './loads.ts'
import { descriptorsMax, program } from './machine.ts'
import { type MachineMemory, machineMemory, residentBytes, spent, timesOf } from './processes.ts'

const CONNECTIONS_MAX = 10_000
/** Of the descriptors a process may have, the share that a gateway can give to connections, at two for each. */
const DESCRIPTORS_SHARE = 0.9
const CONNECTIONS = Math.min(CONNECTIONS_MAX, Math.floor((descriptorsMax() * DESCRIPTORS_SHARE) / 2))
/** What the opening left behind is collected and given back, or never. */
const SETTLE_MS = 2000

interface Idle extends Sample {
  connections: number
  /** Growth of all processes of the gateway. */
  residentBytes: number
  /** Growth of what the kernel holds; the sockets of client and target are in it, the same on both sides of a pair. */
  slabBytes: number
  /** What is no longer available, for whatever reason; the traffic programs' own memory is in it. */
  machineBytes: number
}

const perConnection = (name: string, bytes: (sample: Idle) => number) => ({
  name: `${name} bytes/connection`,
  better: 'lower' as const,
  of: (sample: Idle) => bytes(sample) / sample.connections,
})

export const idle: Load<Idle> = {
  name: 'idle',
  connections: CONNECTIONS,
  metrics: [
    perConnection('resident', (s) => s.residentBytes),
    perConnection('kernel slab', (s) => s.slabBytes),
    perConnection('machine', (s) => s.machineBytes),
  ],
  unit: { name: 'connection', count: (s) => s.connections },
  run,
}

async function run({ lab, host, request, gateway }: Context): Promise<Idle> {
  const resident = () => (gateway === null ? 0 : residentBytes(gateway))
  await Bun.sleep(SETTLE_MS)
  const before = { resident: resident(), machine: machineMemory(), times: timesOf(gateway) }
  const command = [program('idle'), host, String(IDLE_PORT), String(CONNECTIONS)]
  const child = lab.client.spawn(command, { stdin: request, stdout: 'pipe', stderr: 'pipe' })
  const problems = new Response(child.stderr).text()
  const lines = child.stdout.pipeThrough(new TextDecoderStream())[Symbol.asyncIterator]()
  if ((await lines.next()).value !== 'open\n') throw new Error(`idle: ${(await problems).trim()}`)
  await Bun.sleep(SETTLE_MS)
  const after = { resident: resident(), machine: machineMemory(), times: timesOf(gateway) }
  child.kill('SIGTERM')
  const open = Number((await lines.next()).value)
  if (open !== CONNECTIONS) throw new Error(`idle: only ${open} of ${CONNECTIONS} were still open`)
  const grown = (what: keyof MachineMemory) => after.machine[what] - before.machine[what]
  return {
    ...spent(before.times, after.times),
    connections: CONNECTIONS,
    residentBytes: after.resident - before.resident,
    slabBytes: grown('slab'),
    machineBytes: -grown('available'),
  }
}
