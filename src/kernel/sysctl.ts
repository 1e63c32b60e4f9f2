// The kernel settings that forwarding needs. What was there before is written down first, so that the next stop, of this
// life or a later one, can put it back.
import { mkdir, open, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { dirname } from 'node:path'

export interface Setting {
  name: string
  value: string
  why: string
}

export const SETTINGS: Setting[] = [
  { name: 'net.ipv4.ip_forward', value: '1', why: 'the kernel forwards IPv4 packets to the targets' },
  { name: 'net.ipv6.conf.all.forwarding', value: '1', why: 'the kernel forwards IPv6 packets to the targets' },
  { name: 'net.netfilter.nf_conntrack_acct', value: '1', why: 'records have byte counts' },
  { name: 'net.netfilter.nf_conntrack_timestamp', value: '1', why: 'records keep their start over a restart' },
  // 2, the usual value, gives events to a flow only when somebody listens as it begins, whatever the rules say.
  { name: 'net.netfilter.nf_conntrack_events', value: '1', why: 'flows that begin during a restart have events too' },
]

const pathOf = (name: string) => `/proc/sys/${name.replaceAll('.', '/')}`

export class Sysctl {
  /** name → value before us. */
  #before: Record<string, string> = {}

  /** @param memory file that remembers the values from before us, over a kill. */
  constructor(private readonly memory: string) {}

  /** Sets what differs; returns what was changed. A setting that does not exist here (no IPv6) is left out. */
  async apply(settings: Setting[]): Promise<{
    changed: { name: string; from: string; to: string; why: string }[]
    failed: { name: string; message: string }[]
  }> {
    this.#before = await this.#recall()
    const changed = []
    const failed = []
    for (const { name, value, why } of settings) {
      const now = await readFile(pathOf(name), 'utf8').then(
        (text) => text.trim(),
        () => null,
      )
      if (now === null || now === value) continue
      // Written down before it is changed: a kill between the two loses nothing.
      if (this.#before[name] === undefined) {
        this.#before[name] = now
        await this.#remember()
      }
      try {
        await writeFile(pathOf(name), value)
        changed.push({ name, from: now, to: value, why })
      } catch (error) {
        failed.push({ name, message: (error as Error).message })
      }
    }
    return { changed, failed }
  }

  /** Puts back what we changed; returns it. */
  async restore(): Promise<{ name: string; to: string }[]> {
    this.#before = { ...(await this.#recall()), ...this.#before }
    const restored = []
    for (const [name, value] of Object.entries(this.#before)) {
      const done = await writeFile(pathOf(name), value).then(
        () => true,
        () => false,
      )
      if (done) restored.push({ name, to: value })
    }
    this.#before = {}
    await rm(this.memory, { force: true })
    return restored
  }

  async #recall(): Promise<Record<string, string>> {
    try {
      const found: unknown = JSON.parse(await readFile(this.memory, 'utf8'))
      const known = new Set(SETTINGS.map((setting) => setting.name))
      return Object.fromEntries(
        Object.entries(found as Record<string, string>).filter(
          ([name, value]) => known.has(name) && /^\d{1,10}$/.test(value),
        ),
      )
    } catch {
      return {}
    }
  }

  async #remember() {
    await mkdir(dirname(this.memory), { recursive: true, mode: 0o700 })
    const temporary = `${this.memory}.new`
    const file = await open(temporary, 'w', 0o600)
    await file.writeFile(JSON.stringify(this.#before))
    await file.sync()
    await file.close()
    await rename(temporary, this.memory)
  }
}
