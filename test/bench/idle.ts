// The load that does nothing: what ten thousand open connections hold of the machine's memory.
import { type Context, IDLE_PORT, type Load, type Sample } from './loads.ts'
import { descriptorsMax, program } from './machine.ts'
import { grown, type MachineMemory, machineMemory, residentOf, spent, timesOf } from './processes.ts'

const CONNECTIONS_MAX = 10_000
/** Of the descriptors a process may have, the share that a gateway can give to connections, at two for each. */
const DESCRIPTORS_SHARE = 0.9
const CONNECTIONS = Math.min(CONNECTIONS_MAX, Math.floor((descriptorsMax() * DESCRIPTORS_SHARE) / 2))
const WARMUP_CONNECTIONS = 256
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

async function run(context: Context): Promise<Idle> {
  const { gateway } = context
  // What a first connection brings in (code that had not run yet) is not what a connection holds.
  await (await open(context, WARMUP_CONNECTIONS)).close()
  await Bun.sleep(SETTLE_MS)
  const before = { resident: residentOf(gateway), machine: machineMemory(), times: timesOf(gateway) }
  const connections = await open(context, CONNECTIONS)
  await Bun.sleep(SETTLE_MS)
  const after = { resident: residentOf(gateway), machine: machineMemory(), times: timesOf(gateway) }
  await connections.close()
  const machineGrowth = (what: keyof MachineMemory) => after.machine[what] - before.machine[what]
  const memory = grown(before.resident, after.resident)
  return {
    ...spent(before.times, after.times),
    connections: CONNECTIONS,
    residentBytes: memory.reduce((sum, { anonymous, file }) => sum + anonymous + file, 0),
    memory,
    slabBytes: machineGrowth('slab'),
    machineBytes: -machineGrowth('available'),
  }
}

/** So many connections that are open and idle; `close` throws when they no longer were. */
async function open({ lab, host, request }: Context, count: number) {
  const command = [program('idle'), host, String(IDLE_PORT), String(count)]
  const child = lab.client.spawn(command, { stdin: request, stdout: 'pipe', stderr: 'pipe' })
  const problems = new Response(child.stderr).text()
  const lines = child.stdout.pipeThrough(new TextDecoderStream())[Symbol.asyncIterator]()
  if ((await lines.next()).value !== 'open\n') throw new Error(`idle: ${(await problems).trim()}`)
  return {
    async close() {
      child.kill('SIGTERM')
      const left = Number((await lines.next()).value)
      await child.exited
      if (left !== count) throw new Error(`idle: only ${left} of ${count} were still open`)
    },
  }
}
