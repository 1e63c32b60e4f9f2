// The only file that runs nft, and how: one transaction on standard input, nothing on the command line, never a shell
// string with anything of ours in it. Asynchronous throughout; the caller decides about retries.
import { $ } from 'zx'

export class NftError extends Error {
  override name = 'NftError'
}

/** A transaction that takes longer than this is given up; nft itself waits for no one, so something is very wrong then. */
const NFT_MS_MAX = 30_000
/** Enough of what nft says to understand it; it repeats the failing line, which may be a whole table. */
const MESSAGE_CHARS_MAX = 400

export interface Nft {
  /** Applies the commands as one transaction: all of them or none. `onPid` hears the process id, by which the kernel's
   *  notification names it. Only when the kernel cannot take so large a transaction are they split, in their order. */
  apply(commands: string[], onPid?: (pid: number) => void): Promise<void>
  /** The table as nft's JSON, or null when there is none. 'rules': without the elements of its sets. */
  list(table: string, what?: 'rules'): Promise<unknown[] | null>
  /** One set of the table as nft's JSON; null when it is not there. */
  listSet(table: string, set: string): Promise<unknown[] | null>
  version(): Promise<string>
}

// zx starts a shell; `exec` replaces it, so that its process id is nft's own. At the root: where nft is not in the PATH
// the shell would take what has that name where we are, such as this project's nft/.
const run = $({ quiet: true, nothrow: true, timeout: NFT_MS_MAX, prefix: '', postfix: '', cwd: '/' })

const messageOf = (stderr: string) =>
  stderr
    .split('\n')
    .filter((line) => line.trim() !== '')
    .slice(0, 3)
    .join(' ')
    .slice(0, MESSAGE_CHARS_MAX)

/** Only our own table, by name: listing sets that a newer nft made can crash this one. */
async function listing(words: string[]): Promise<unknown[] | null> {
  const result = await run`exec nft -j ${words}`
  if (result.exitCode === 0) return (JSON.parse(result.stdout) as { nftables: unknown[] }).nftables
  if (/No such file or directory/.test(result.stderr)) return null
  throw new NftError(
    `Cannot read the nft table: ${messageOf(result.stderr) || `nft ended with ${result.exitCode ?? result.signal}`}`,
  )
}

export const nft: Nft = {
  async apply(commands, onPid) {
    const process = run`exec nft -f -`
    // An nft that ends before it has read everything closes its end: its exit code tells, not the pipe.
    process.stdin.on('error', () => {})
    process.stdin.end(commands.join('\n') + '\n')
    if (process.pid !== undefined) onPid?.(process.pid)
    const result = await process
    if (result.exitCode === 0) return
    // EMSGSIZE: the transaction exceeds the socket's send buffer, which only the first user namespace may enlarge.
    if (/Message too long/.test(result.stderr) && commands.length > 1) {
      const half = commands.length >> 1
      await nft.apply(commands.slice(0, half), onPid)
      return nft.apply(commands.slice(half), onPid)
    }
    throw new NftError(
      `Cannot apply the nft transaction: ${messageOf(result.stderr) || `nft ended with ${result.exitCode ?? result.signal}`}`,
    )
  },
  list: (table, what) =>
    listing(what === 'rules' ? ['-t', 'list', 'table', 'inet', table] : ['list', 'table', 'inet', table]),
  listSet: (table, set) => listing(['list', 'set', 'inet', table, set]),
  async version() {
    const result = await run`exec nft --version`
    if (result.exitCode !== 0)
      throw new NftError(
        result.exitCode === 127
          ? 'nft is not installed (apt-get install nftables)'
          : `Cannot run nft: ${messageOf(result.stderr)}`,
      )
    return /v(\d+\.\d+\.\d+)/.exec(result.stdout)?.[1] ?? result.stdout.trim()
  },
}
