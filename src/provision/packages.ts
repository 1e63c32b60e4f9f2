// Which Debian packages each purpose needs, and which of them this machine lacks. A set contains the sets it names.
import { $ } from 'zx'

export type PackageSet = 'build' | 'run' | 'test' | 'bench' | 'vm'

const sets: Record<PackageSet, { contains: PackageSet[]; packages: string[] }> = {
  /** The compiler and what native/ is linked with. */
  build: { contains: [], packages: ['gcc', 'libc6-dev', 'libmnl0', 'libmnl-dev'] },
  /** The programs the gateway, its demonstration and `doctor` start. */
  run: {
    contains: ['build'],
    packages: ['nftables', 'conntrack', 'iproute2', 'procps', 'curl', 'openssl', 'util-linux'],
  },
  /** Real peers, and the tools the tests look with. */
  test: {
    contains: ['run'],
    packages: [
      ...['haproxy', 'nginx', 'libnginx-mod-stream', 'netcat-openbsd', 'strace', 'testssl.sh'],
      ...['postgresql', 'redis-server', 'openssh-server', 'python3-aiosmtpd'],
      // What completion and the manual are for.
      ...['zsh', 'fish', 'mandoc'],
      // ACME servers.
      ...['caddy', 'pebble'],
      // The dashboard's.
      'chromium',
      // What they think of the files that are installed.
      ...['systemd', 'logrotate'],
      // The programs alone: mariadb-server is a service, and many times as large.
      ...['mariadb-server-core', 'mariadb-client-core'],
    ],
  },
  /** An emulated machine for another kernel, and what takes that kernel out of its package. */
  vm: { contains: ['test'], packages: ['qemu-system-x86', 'kmod', 'busybox-static', 'tar'] },
  bench: { contains: ['run'], packages: ['haproxy', 'nginx', 'libnginx-mod-stream', 'libssl-dev', 'strace'] },
}

export const isPackageSet = (name: string | undefined): name is PackageSet =>
  name !== undefined && Object.hasOwn(sets, name)

export function packagesOf(set: PackageSet): string[] {
  const { contains, packages } = sets[set]
  return [...new Set([...contains.flatMap(packagesOf), ...packages])]
}

/** What is lacking of `wanted`. Throws where there is no dpkg to ask. */
export async function missingOf(wanted: string[]): Promise<string[]> {
  // It fails when it does not know one of the names and answers for the others, so the exit code says nothing.
  const query = await $({
    quiet: true,
    nothrow: true,
  })`dpkg-query --show --showformat ${'${Package} ${db:Status-Status}\\n'} ${wanted}`
  if (query.exitCode === 127)
    throw new Error(
      `Cannot ask which packages are installed: no dpkg-query here. Needed is what Debian has in ${wanted.join(' ')}`,
    )
  const installed = new Set(
    query.stdout
      .split('\n')
      .filter((line) => line.endsWith(' installed'))
      .map((line) => line.split(' ')[0]),
  )
  return wanted.filter((name) => !installed.has(name))
}

/** The one command that puts it right. */
export const aptCommand = (names: string[]) => `sudo apt-get install -y --no-install-recommends ${names.join(' ')}`
