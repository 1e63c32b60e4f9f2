// What `make install` puts where: a list of files and directories for a prefix, decided without touching anything.
import { join } from 'node:path'
import { logrotateText, sysctlText, unitText } from './system-files.ts'

export const USER = 'sluice'
export const CONFIG = '/etc/sluice/sluice.config.ts'
export const SYSCTL = '/etc/sysctl.d/60-sluice.conf'

export interface Item {
  /** Absolute, as the machine that runs it sees it. */
  path: string
  mode: number
  /** Default: root's. */
  group?: string
  content:
    | { text: string }
    /** A file of the checkout. */
    | { copy: string }
    /** What the program prints with these arguments; left out where this version does not know the command. */
    | { printed: string[] }
  /** Written once: from then on it is the operator's. */
  once?: boolean
}

export interface Directory {
  path: string
  mode: number
  group?: string
}

/** @param program the compiled program in the checkout. @param starter a configuration to begin with. */
export function layout(prefix: string, program: string, starter: string): { directories: Directory[]; items: Item[] } {
  const share = join(prefix, 'share')
  const installed = join(prefix, 'bin/sluice')
  const text = (path: string, content: string): Item => ({ path, mode: 0o644, content: { text: content } })
  const printed = (path: string, ...words: string[]): Item => ({ path, mode: 0o644, content: { printed: words } })
  return {
    directories: [
      { path: '/etc/sluice', mode: 0o755 },
      { path: '/var/lib/sluice', mode: 0o700 },
      { path: '/var/log/sluice', mode: 0o750 },
    ],
    items: [
      { path: installed, mode: 0o755, content: { copy: program } },
      text(join(unitDirectory(prefix), 'sluice.service'), unitText(installed, CONFIG)),
      // Workers read it too, where it has handlers in it; nobody else, since it may name tokens and passwords.
      { path: CONFIG, mode: 0o640, group: USER, content: { text: starter }, once: true },
      text(SYSCTL, sysctlText()),
      text('/etc/logrotate.d/sluice', logrotateText()),
      printed(join(share, 'man/man8/sluice.8'), 'man'),
      printed(join(share, 'bash-completion/completions/sluice'), 'completion', 'bash'),
      printed(join(share, 'zsh/site-functions/_sluice'), 'completion', 'zsh'),
      printed(join(share, 'fish/vendor_completions.d/sluice.fish'), 'completion', 'fish'),
    ],
  }
}

/** Where systemd looks: below these two prefixes, else among what the administrator has put there. */
const unitDirectory = (prefix: string) =>
  prefix === '/usr' || prefix === '/usr/local' ? join(prefix, 'lib/systemd/system') : '/etc/systemd/system'

export const manifestPath = (prefix: string) => join(prefix, 'share/sluice/installed.json')

/** What an installation has made, and nothing else: "make uninstall" takes away this. */
export interface Manifest {
  version: string
  /** path → SHA-256 of what was written. */
  files: Record<string, string>
  /** Those that were not there before, outer ones first. */
  directories: string[]
  /** Whether the user was made by us. */
  user: boolean
  /** Settings of the running kernel that were changed → their value before. */
  settings: Record<string, string>
}

export const emptyManifest = (): Manifest => ({ version: '', files: {}, directories: [], user: false, settings: {} })

/** The directories above a path, outermost first, without the root. */
export function above(path: string): string[] {
  const parts = path.split('/').filter(Boolean).slice(0, -1)
  return parts.map((_, i) => `/${parts.slice(0, i + 1).join('/')}`)
}
