// `make install`: puts the program on this machine as a service, or below DESTDIR for a package. A second run changes nothing; one
// with a newer program replaces it and leaves alone what was changed since. Nothing is started: that is the operator's to do.
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { $ } from 'zx'
import { above, emptyManifest, type Item, layout, type Manifest, manifestPath, USER } from './layout.ts'
import { Machine } from './machine.ts'
import { SETTINGS } from './system-files.ts'

const program = resolve(process.argv[2] ?? 'build/sluice')
const sha256 = (bytes: Uint8Array) => new Bun.CryptoHasher('sha256').update(bytes).digest('hex')
const printedBy = $({ quiet: true, nothrow: true })

try {
  await install(Machine.fromEnvironment())
} catch (error) {
  console.error((error as Error).message)
  process.exit(1)
}

async function install(machine: Machine) {
  const workshop = await mkdtemp(join(tmpdir(), 'sluice-install-'))
  try {
    const version = (await printedBy`${program} --version`).stdout.trim()
    const found = await machine.manifest()
    const before = found?.version
    const manifest = found ?? emptyManifest()
    const { directories, items } = layout(machine.prefix, program, await starter(workshop))
    let changes = 0
    if (machine.isThisOne && !(await machine.hasUser(USER))) {
      await machine.addUser(USER)
      manifest.user = true
      changes++
    }
    for (const { path, mode, group } of directories) {
      if ((await machine.modeOf(path)) === mode) continue
      await remember(machine, manifest, `${path}/.`)
      await machine.makeDirectory(path, mode, group)
      changes++
    }
    for (const item of items) if (await put(machine, manifest, item, join(workshop, 'text'))) changes++
    if (machine.isThisOne) changes += await setKernel(machine, manifest)
    manifest.version = version
    changes += await writeManifest(machine, manifest, join(workshop, 'manifest'))
    if (changes === 0) return console.log(`Nothing to change: sluice ${version} is installed`)
    await sayWhatNext(machine, version, before)
  } finally {
    await rm(workshop, { recursive: true, force: true })
  }
}

async function starter(workshop: string): Promise<string> {
  const file = join(workshop, 'starter.ts')
  await $({ quiet: true })`${program} init ${file}`
  return Bun.file(file).text()
}

/** Returns whether it was written. */
async function put(machine: Machine, manifest: Manifest, item: Item, temporary: string): Promise<boolean> {
  const bytes = await contentOf(item)
  if (bytes === null) return false
  const { path, mode, group, once } = item
  const there = await machine.read(path)
  if (there !== null) {
    if (once) return false
    const hash = sha256(there)
    if (there.equals(bytes) && (await machine.modeOf(path)) === mode) {
      manifest.files[path] = hash
      return false
    }
    // Of /etc only: what is below the prefix is the program's own.
    if (path.startsWith('/etc/') && manifest.files[path] !== hash && !there.equals(bytes)) {
      console.log(`Kept ${machine.at(path)}: it was changed since it was installed`)
      return false
    }
  }
  await remember(machine, manifest, path)
  const source = 'copy' in item.content ? item.content.copy : temporary
  if (source === temporary) await writeFile(temporary, bytes)
  await machine.install(source, path, mode, group)
  manifest.files[path] = sha256(bytes)
  return true
}

/** null: this version of the program has nothing for it. */
async function contentOf({ path, content }: Item): Promise<Buffer | null> {
  if ('text' in content) return Buffer.from(content.text)
  if ('copy' in content) return Buffer.from(await Bun.file(content.copy).arrayBuffer())
  const { stdout, exitCode } = await printedBy`${program} ${content.printed}`
  if (exitCode === 0 && stdout !== '') return Buffer.from(stdout)
  console.log(`Left out ${path}: the program has no "${content.printed.join(' ')}"`)
  return null
}

/** Which directories the next command makes. */
async function remember(machine: Machine, manifest: Manifest, path: string) {
  for (const directory of above(path))
    if ((await machine.modeOf(directory)) === null && !manifest.directories.includes(directory))
      manifest.directories.push(directory)
}

/** What the file in sysctl.d says, for the time until the next start of the machine. Returns how many were changed. */
async function setKernel(machine: Machine, manifest: Manifest): Promise<number> {
  let changed = 0
  for (const { name, value, why } of SETTINGS) {
    const now = await machine.setting(name)
    if (now === null || now === value) continue
    console.log(`${name} was ${now}: ${why}`)
    if (!(await machine.set(name, value))) {
      console.log(`The kernel does not let us set ${name} here`)
      continue
    }
    manifest.settings[name] ??= now
    changed++
  }
  return changed
}

/** It is the last to be written: an installation that fails half way is completed by the next one. Returns 1 where it was. */
async function writeManifest(machine: Machine, manifest: Manifest, temporary: string): Promise<number> {
  const path = manifestPath(machine.prefix)
  await remember(machine, manifest, path)
  const text = `${JSON.stringify(manifest, null, 2)}\n`
  if ((await machine.read(path))?.toString() === text) return 0
  await writeFile(temporary, text)
  await machine.install(temporary, path, 0o644)
  return 1
}

async function sayWhatNext(machine: Machine, version: string, before: string | undefined) {
  console.log(`sluice ${version} is installed${before === undefined || before === version ? '' : ` (was ${before})`}`)
  if (!machine.isThisOne) return
  if (!(await machine.hasSystemd())) {
    console.log('No systemd runs here. To run the gateway: sluice run --config /etc/sluice/sluice.config.ts')
    return
  }
  await machine.systemctl('daemon-reload')
  console.log(
    before === undefined
      ? 'Next: edit /etc/sluice/sluice.config.ts, "sluice plan" shows what it would do, then: systemctl enable --now sluice'
      : 'A gateway that runs goes on with the program it has: systemctl restart sluice',
  )
}
