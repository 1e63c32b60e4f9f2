// `make install` and `make uninstall` below a DESTDIR, with a stand-in for the program: what is there afterwards, what a second
// run does, and what is kept.
import { afterAll, expect, test } from 'bun:test'
import { appendFile, chmod, mkdtemp, readdir, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'

const directory = await mkdtemp(join(tmpdir(), 'sluice-install-test-'))
afterAll(() => rm(directory, { recursive: true, force: true }))

/** Says what the real one says, as far as an installation asks. */
async function program(version: string): Promise<string> {
  const path = join(directory, `program-${version}`)
  await writeFile(
    path,
    `#!/bin/sh
case "$1" in
  --version) echo ${version} ;;
  init) echo "the starter of ${version}" > "$2" ;;
  man) echo "the page of ${version}" ;;
  completion) [ "$2" != fish ] && echo "completion for $2" ;;
esac
`,
  )
  await chmod(path, 0o755)
  return path
}

async function run(script: 'install' | 'uninstall', root: string, version = '1.0', prefix = '/usr/local') {
  const child = Bun.spawn([process.execPath, `src/provision/${script}-system.ts`, await program(version)], {
    env: { ...process.env, DESTDIR: root, PREFIX: prefix },
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const [out, err] = await Promise.all([new Response(child.stdout).text(), new Response(child.stderr).text()])
  return { out, commands: err.split('\n').filter((line) => line.startsWith('$ ')), exitCode: await child.exited }
}

/** path → mode of every file and empty directory. */
async function tree(root: string): Promise<Record<string, string>> {
  const entries = await readdir(root, { recursive: true }).catch(() => [])
  const found: Record<string, string> = {}
  for (const entry of entries.toSorted()) {
    const at = await stat(join(root, entry))
    const isLeaf = at.isFile() || !entries.some((other) => other.startsWith(`${entry}/`))
    if (isLeaf) found[`/${entry}`] = (at.mode & 0o7777).toString(8)
  }
  return found
}

const INSTALLED = {
  '/etc/logrotate.d/sluice': '644',
  '/etc/sluice/sluice.config.ts': '640',
  '/etc/sysctl.d/60-sluice.conf': '644',
  '/usr/local/bin/sluice': '755',
  '/usr/local/lib/systemd/system/sluice.service': '644',
  '/usr/local/share/bash-completion/completions/sluice': '644',
  '/usr/local/share/man/man8/sluice.8': '644',
  '/usr/local/share/sluice/installed.json': '644',
  '/usr/local/share/zsh/site-functions/_sluice': '644',
  '/var/lib/sluice': '700',
  '/var/log/sluice': '750',
}

test('installed, again, newer, and taken away: nothing is left, and no command leaves DESTDIR', async () => {
  const root = join(directory, 'fresh')
  const first = await run('install', root)
  expect(first).toMatchObject({ exitCode: 0 })
  expect(await tree(root)).toEqual(INSTALLED)
  expect(first.out).toContain('sluice 1.0 is installed')
  expect(first.out).toContain('Left out /usr/local/share/fish/vendor_completions.d/sluice.fish')
  expect(first.commands.length).toBeGreaterThan(10)
  for (const line of first.commands) {
    expect(line).toMatch(/^\$ (?:install|mv) /)
    expect(line.split(' ').at(-1)).toStartWith(root)
  }

  const second = await run('install', root)
  expect(second).toMatchObject({ exitCode: 0, commands: [] })
  expect(second.out).toContain('Nothing to change: sluice 1.0 is installed')

  const newer = await run('install', root, '2.0')
  expect(newer.out).toContain('sluice 2.0 is installed (was 1.0)')
  expect(await tree(root)).toEqual(INSTALLED)
  const text = (path: string) => Bun.file(join(root, path)).text()
  expect(await text('usr/local/bin/sluice')).toContain('echo 2.0')
  expect(await text('usr/local/share/man/man8/sluice.8')).toBe('the page of 2.0\n')
  // The operator's from the first day on.
  expect(await text('etc/sluice/sluice.config.ts')).toBe('the starter of 1.0\n')

  const gone = await run('uninstall', root, '2.0')
  expect(gone).toMatchObject({ exitCode: 0 })
  expect(gone.out).not.toContain('Kept')
  expect(await tree(root)).toEqual({})
  expect((await run('uninstall', root)).out).toContain('Nothing to take away')
}, 20_000)

test('what was changed since, and what was there before, is kept and named', async () => {
  const root = join(directory, 'used')
  await Bun.write(join(root, 'usr/local/bin/another'), 'not ours')
  await run('install', root)
  await appendFile(join(root, 'etc/sluice/sluice.config.ts'), '// mine\n')
  await appendFile(join(root, 'etc/logrotate.d/sluice'), '# mine\n')
  await writeFile(join(root, 'var/lib/sluice/totals.json'), '{}')
  const again = await run('install', root, '2.0')
  expect(again.out).toContain(`Kept ${root}/etc/logrotate.d/sluice`)

  const gone = await run('uninstall', root)
  expect(gone.exitCode).toBe(0)
  expect(Object.keys(await tree(root))).toEqual([
    '/etc/logrotate.d/sluice',
    '/etc/sluice/sluice.config.ts',
    '/usr/local/bin/another',
    '/var/lib/sluice/totals.json',
  ])
  for (const path of ['/etc/logrotate.d/sluice', '/etc/sluice/sluice.config.ts', '/var/lib/sluice'])
    expect(gone.out).toContain(`  ${root}${path}\n`)
}, 20_000)

test('PREFIX: the unit starts the program that is there, and stands where systemd looks', async () => {
  const root = join(directory, 'elsewhere')
  await run('install', root, '1.0', '/opt/sluice')
  const unit = await Bun.file(join(root, 'etc/systemd/system/sluice.service')).text()
  expect(unit).toContain('\nExecStart=/opt/sluice/bin/sluice run --config /etc/sluice/sluice.config.ts\n')
  expect(await tree(root)).toMatchObject({ '/opt/sluice/bin/sluice': '755' })
  await run('uninstall', root, '1.0', '/opt/sluice')
  expect(await tree(root)).toEqual({})
  expect(await run('install', 'relative')).toMatchObject({ exitCode: 1 })
}, 20_000)
