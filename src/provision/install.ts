// Puts a set of Debian packages on this machine: `bun src/provision/install.ts build|run|test|bench|vm`. Nothing to do is
// done silently; an ordinary user is told the one command root has to run.
import { installPackages } from './apt.ts'
import { aptCommand, isPackageSet, missingOf, type PackageSet, packagesOf } from './packages.ts'

/** Installs what is missing when we are root; returns what is missing then. */
export async function provide(set: PackageSet): Promise<string[]> {
  const missing = await missingOf(packagesOf(set))
  if (missing.length === 0 || process.getuid!() !== 0) return missing
  await installPackages(missing)
  return []
}

if (import.meta.main) {
  const set = process.argv[2]
  if (!isPackageSet(set)) {
    console.error('usage: bun src/provision/install.ts build|run|test|bench|vm')
    process.exit(2)
  }
  const missing = await provide(set).catch((error: Error) => {
    console.error(error.message)
    process.exit(1)
  })
  if (missing.length > 0) {
    console.error(`Packages are missing, and only root can install them:\n  ${aptCommand(missing)}`)
    process.exit(1)
  }
}
