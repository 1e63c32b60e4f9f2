// What installing and uninstalling do to the machine: each command is shown before it runs, and paths go below DESTDIR.
import { readFile, stat } from 'node:fs/promises'
import { isAbsolute, join, normalize } from 'node:path'
import { $ } from 'zx'
import { emptyManifest, type Manifest, manifestPath } from './layout.ts'

const shown = $({ verbose: true, stdio: ['ignore', 'inherit', 'inherit'] })
/** Shown, and its failure is the caller's to judge. */
const tried = $({ verbose: true, nothrow: true, stdio: ['ignore', 'inherit', 'inherit'] })
const asked = $({ quiet: true, nothrow: true })

export class Machine {
  private constructor(
    readonly prefix: string,
    /** '' where it is this machine itself. */
    readonly root: string,
  ) {}

  static fromEnvironment(): Machine {
    const { PREFIX = '/usr/local', DESTDIR = '' } = process.env
    for (const [name, value] of Object.entries({ PREFIX, DESTDIR }))
      if (value !== '' && !isAbsolute(value)) throw new Error(`${name} has to be an absolute path, not "${value}"`)
    const trimmed = (path: string) => normalize(path).replace(/\/+$/, '')
    const machine = new Machine(trimmed(PREFIX), DESTDIR === '' ? '' : trimmed(DESTDIR))
    if (machine.isThisOne && process.getuid!() !== 0)
      throw new Error(
        'This needs root: it adds a user and writes to /etc. Try: sudo make install (or give DESTDIR=path)',
      )
    return machine
  }

  /** Users, the kernel and systemd are touched here only. */
  get isThisOne() {
    return this.root === ''
  }

  at(path: string) {
    return join(this.root, path)
  }

  /** null: there is none. */
  async read(path: string): Promise<Buffer | null> {
    return readFile(this.at(path)).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT' || error.code === 'ENOTDIR') return null
      throw error
    })
  }

  async modeOf(path: string): Promise<number | null> {
    return stat(this.at(path)).then(
      ({ mode }) => mode & 0o7777,
      () => null,
    )
  }

  async manifest(): Promise<Manifest | null> {
    const text = await this.read(manifestPath(this.prefix))
    return text === null ? null : { ...emptyManifest(), ...(JSON.parse(text.toString()) as Partial<Manifest>) }
  }

  /** Replaced as a whole: a program that runs keeps the file that it has mapped. */
  async install(source: string, path: string, mode: number, group?: string) {
    const whole = this.at(path)
    const owner = this.#owner(group)
    await shown`install -D -m ${mode.toString(8).padStart(4, '0')} ${owner} ${source} ${whole}.new`
    await shown`mv -f ${whole}.new ${whole}`
  }

  async makeDirectory(path: string, mode: number, group?: string) {
    await shown`install -d -m ${mode.toString(8).padStart(4, '0')} ${this.#owner(group)} ${this.at(path)}`
  }

  /** Below DESTDIR there are no users, and whoever packs it may be an ordinary one. */
  #owner(group = 'root') {
    return this.isThisOne ? ['-o', 'root', '-g', group] : []
  }

  async remove(path: string) {
    await shown`rm -f ${this.at(path)}`
  }

  /** false: there is something in it. */
  async removeDirectory(path: string): Promise<boolean> {
    if ((await this.modeOf(path)) === null) return true
    const { exitCode } = await asked`rmdir ${this.at(path)}`
    return exitCode === 0
  }

  async hasUser(name: string): Promise<boolean> {
    return (await asked`getent passwd ${name}`).exitCode === 0
  }

  async addUser(name: string) {
    if ((await asked`getent group ${name}`).exitCode !== 0) await shown`groupadd --system ${name}`
    await shown`useradd --system --gid ${name} --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin ${name}`
  }

  async removeUser(name: string) {
    await tried`userdel ${name}`
    if ((await asked`getent group ${name}`).exitCode === 0) await tried`groupdel ${name}`
  }

  /** null: this kernel does not have it. */
  async setting(name: string): Promise<string | null> {
    const result = await asked`sysctl -n ${name}`
    return result.exitCode === 0 ? result.stdout.trim() : null
  }

  /** false: the kernel refuses, as in most containers. */
  async set(name: string, value: string): Promise<boolean> {
    return (await tried`sysctl -q -w ${`${name}=${value}`}`).exitCode === 0
  }

  async hasSystemd(): Promise<boolean> {
    return this.isThisOne && (await this.modeOf('/run/systemd/system')) !== null
  }

  async systemctl(...words: string[]) {
    await tried`systemctl ${words}`
  }
}
