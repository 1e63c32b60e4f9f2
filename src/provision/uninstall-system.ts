// `make uninstall`: takes away what `make install` has made, by the list that it left. What was changed since is kept and named.
import { manifestPath, USER } from './layout.ts'
import { Machine } from './machine.ts'

const sha256 = (bytes: Uint8Array) => new Bun.CryptoHasher('sha256').update(bytes).digest('hex')

try {
  await uninstall(Machine.fromEnvironment())
} catch (error) {
  console.error((error as Error).message)
  process.exit(1)
}

async function uninstall(machine: Machine) {
  const manifest = await machine.manifest()
  const list = manifestPath(machine.prefix)
  if (manifest === null) return console.log(`Nothing to take away: there is no ${machine.at(list)}`)
  const systemd = await machine.hasSystemd()
  // Before its files go; it takes the kernel rules with it (kernel.onStop).
  if (systemd) await machine.systemctl('disable', '--now', 'sluice.service')
  const kept: string[] = []
  for (const [path, hash] of Object.entries(manifest.files)) {
    const there = await machine.read(path)
    if (there === null) continue
    if (sha256(there) === hash) await machine.remove(path)
    else kept.push(path)
  }
  if (machine.isThisOne)
    for (const [name, value] of Object.entries(manifest.settings)) {
      console.log(`${name} was ${value} before it was installed`)
      await machine.set(name, value)
    }
  await machine.remove(list)
  for (const directory of manifest.directories.toReversed())
    if (!(await machine.removeDirectory(directory))) kept.push(directory)
  if (machine.isThisOne && manifest.user) await machine.removeUser(USER)
  if (systemd) await machine.systemctl('daemon-reload')
  if (kept.length > 0)
    console.log(
      ['Kept, since something in it is not as it was installed:', ...kept.map((path) => `  ${machine.at(path)}`)].join(
        '\n',
      ),
    )
  console.log(`sluice ${manifest.version} is gone from ${machine.isThisOne ? 'this machine' : machine.root}`)
}
