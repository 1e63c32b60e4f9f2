// Debian's own kernel for the emulated machine: taken out of its package and not installed, so that the machine the tests
// run on gets no new boot kernel. An ordinary user can do all of it.
import { mkdir, readdir, readFile, rename, rm } from 'node:fs/promises'
import { join, resolve } from 'node:path'
import { $ } from 'zx'

/** It depends on the newest kernel of this Debian. The one for clouds has no 9p, by which the guest sees our files. */
const META_PACKAGE = 'linux-image-amd64'
/** What the guest may need of the 400 MB of modules. */
const MODULES = [
  'net',
  'fs/9p',
  'fs/autofs',
  'fs/netfs',
  'fs/fscache',
  'fs/overlayfs',
  'drivers/virtio',
  'drivers/net/veth.ko',
  'lib',
]
const ALSO = ['crypto', 'arch/x86/crypto']
const DOWNLOAD = '300s'

export interface Kernel {
  /** As `uname -r` says it. */
  version: string
  image: string
  /** lib/modules of this kernel. */
  modules: string
  /** The module files that have to be loaded for these, in this order. */
  filesOf(names: string[]): Promise<string[]>
}

/** The kernel package the meta package names: `Depends: linux-image-6.1.0-56-amd64 (= 6.1.192-2)`. */
export function kernelPackage(show: string): { name: string; version: string } | undefined {
  const [, name, version] = /^Depends: (linux-image-[\w.+-]+) \(= ([\w.+~:-]+)\)/m.exec(show) ?? []
  return name && version ? { name, version } : undefined
}

/** Unpacks the kernel below `store` unless it is there. */
export async function debianKernel(store: string): Promise<Kernel> {
  const show = await $({ quiet: true, nothrow: true })`apt-cache show --no-all-versions ${META_PACKAGE}`
  const wanted = kernelPackage(show.stdout)
  if (!wanted) throw new Error(`Cannot find ${META_PACKAGE} in the package lists. As root: apt-get update`)
  const folder = resolve(store, `${wanted.name}_${wanted.version}`)
  const version = wanted.name.replace('linux-image-', '')
  const image = join(folder, 'boot', `vmlinuz-${version}`)
  if (!(await Bun.file(image).exists())) {
    await unpack(`${wanted.name}=${wanted.version}`, version, folder)
    // Nobody asks for the kernels before this one again.
    for (const old of await readdir(store))
      if (resolve(store, old) !== folder) await rm(join(store, old), { recursive: true })
  }
  return { version, image, modules: join(folder, 'lib/modules'), filesOf: (names) => filesOf(folder, version, names) }
}

async function unpack(what: string, version: string, folder: string): Promise<void> {
  console.log(`Getting ${what} and taking the kernel out of it`)
  // Moved into place when it is whole.
  const cwd = `${folder}.new`
  await rm(cwd, { recursive: true, force: true })
  await mkdir(cwd, { recursive: true })
  const run = $({ cwd, verbose: true, timeout: DOWNLOAD })
  // As root, apt would give the download to its own user, who cannot write here.
  await run`apt-get download -q -o APT::Sandbox::User=root ${what}`.catch((error: Error) => {
    throw new Error(`Cannot download ${what}: the package lists may be old. As root: apt-get update`, { cause: error })
  })
  const [file] = (await readdir(cwd)).filter((name) => name.endsWith('.deb'))
  const wanted = [...MODULES, ...ALSO].map((path) => `./lib/modules/${version}/kernel/${path}`)
  const about = `./lib/modules/${version}/modules.*`
  await run`dpkg-deb --fsys-tarfile ${file} | tar -x --no-same-owner --wildcards ./boot/vmlinuz-* ${about} ${wanted}`
  await run`depmod -b . ${version}`
  await rm(join(cwd, file!))
  await rename(cwd, folder)
}

async function filesOf(folder: string, version: string, names: string[]): Promise<string[]> {
  const files = new Set<string>()
  for (const name of names) {
    const lines = await $({ quiet: true })`modprobe -d ${folder} -S ${version} --show-depends ${name}`
    for (const [, path] of lines.stdout.matchAll(/^insmod (\S+)/gm)) files.add(path!)
  }
  return [...files]
}

/** The entries a list of modules makes in the first file system, named so that their order is the order to load them. */
export async function moduleEntries(files: string[]) {
  const contents = await Promise.all(files.map((file) => readFile(file)))
  return contents.map((content, index) => ({ path: `modules/${String(index).padStart(2, '0')}.ko`, content }))
}
