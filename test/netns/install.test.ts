// `make install` on a machine, not below a DESTDIR: user, kernel settings and all, on copies of its directories that nobody else
// sees; then what it installed is run; then `make uninstall`. The program is the source behind a script: compiling it takes long.
import { expect } from 'bun:test'
import { chmodSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { testIf } from '../support.ts'
import { until, type Status } from './gateway.ts'
import { Lab } from './lab.ts'

const TOP = resolve(import.meta.dir, '../..')
const PLACES = ['/etc', '/usr/local', '/var/lib', '/var/log']
const alone = readFileSync('/proc/self/uid_map', 'utf8').trim().split(/\s+/)[2] === '1'
const isInstalled = /^sluice:/m.test(readFileSync('/etc/passwd', 'utf8'))
const covered = alone ? 'one user only' : isInstalled ? 'sluice is installed here' : await cover()

/** Returns why not. */
async function cover(): Promise<string | null> {
  for (const place of PLACES) {
    const directory = join('/run/cover', place)
    for (const name of ['upper', 'work']) mkdirSync(join(directory, name), { recursive: true })
    const options = `lowerdir=${place},upperdir=${directory}/upper,workdir=${directory}/work`
    const mount = Bun.spawn(['mount', '-t', 'overlay', 'overlay', '-o', options, place], { stderr: 'pipe' })
    if ((await mount.exited) !== 0)
      return `no overlay over ${place}: ${(await new Response(mount.stderr).text()).trim()}`
  }
  return null
}

/** What there is of files, as overlayfs has collected it: "c" devices are what was taken away. */
const changed = () =>
  PLACES.flatMap((place) => {
    const upper = join('/run/cover', place, 'upper')
    return readdirSync(upper, { recursive: true }).map((entry) => join(place, String(entry)))
  }).filter((path) => statSync(path, { throwIfNoEntry: false })?.isFile())

testIf(covered === null, covered ?? '')(
  'installed as root: a user, settings, a gateway that runs as it should; uninstalled: all as before',
  async () => {
    await using lab = await Lab.create()
    const directory = mkdtempSync(join(tmpdir(), 'sluice-program-'))
    const program = join(directory, 'sluice')
    writeFileSync(program, `#!/bin/sh\nexec ${process.execPath} ${TOP}/src/main.ts "$@"\n`)
    chmodSync(program, 0o755)
    const script = (name: string) =>
      lab.gateway.must(['env', `--chdir=${TOP}`, process.execPath, `src/provision/${name}-system.ts`, program])
    const setting = () => lab.gateway.sysctl('net.ipv4.ip_forward')
    expect(setting()).toBe('0')
    const passwd = readFileSync('/etc/passwd', 'utf8')

    const said = await script('install')
    expect(said).toContain('net.ipv4.ip_forward was 0')
    expect(said).toContain('No systemd runs here')
    const [user] = readFileSync('/etc/passwd', 'utf8').match(/^sluice:.*$/m)!
    expect(user).toEndWith(':/nonexistent:/usr/sbin/nologin')
    const uid = Number(user.split(':')[2])
    expect(setting()).toBe('1')
    const config = statSync('/etc/sluice/sluice.config.ts')
    expect([config.mode & 0o777, config.uid, config.gid]).toEqual([0o640, 0, Number(user.split(':')[3])])
    expect(await script('install')).toContain('Nothing to change')

    const sluice = '/usr/local/bin/sluice'
    const gateway = lab.gateway.spawn([sluice, 'run', '--config', '/etc/sluice/sluice.config.ts'], {
      stdout: 'ignore',
      stderr: 'ignore',
    })
    const status = await until(
      async () => {
        const { stdout } = await lab.gateway.run([sluice, 'status', '--json'])
        const now = JSON.parse(stdout) as Status
        return now.worker.uid !== null && now
      },
      20_000,
      'it serves its starter',
    )
    expect(status.worker.uid).toBe(uid)
    gateway.kill('SIGTERM')
    expect(await gateway.exited).toBe(0)
    // Nothing but its counts, and those are for root.
    expect(statSync('/var/lib/sluice').mode & 0o777).toBe(0o700)
    rmSync('/var/lib/sluice', { recursive: true })

    expect(await script('uninstall')).not.toContain('Kept')
    expect(setting()).toBe('0')
    expect(readFileSync('/etc/passwd', 'utf8')).toBe(passwd)
    expect(
      changed().filter(
        (path) =>
          !/^\/etc\/(?:\.pwd\.lock|passwd|group|shadow|gshadow|subuid|subgid)-?$|\/(?:lastlog|faillog)$/.test(path),
      ),
    ).toEqual([])
    rmSync(directory, { recursive: true })
  },
  30_000,
)
