// The only file that runs nft, and how: one transaction on standard input, nothing on the command line but words of our own,
// no shell. Asynchronous throughout; the caller decides about retries.

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

export interface Result {
  exitCode: number | null
  signal: Bun.Subprocess['signalCode']
  stdout: string
  stderr: string
}

/** Spawned directly: a shell between us would take longer than a small transaction. */
export async function run(words: string[], input?: string, onPid?: (pid: number) => void): Promise<Result> {
  const child = spawn(words, input !== undefined)
  if (!child) return { exitCode: 127, signal: null, stdout: '', stderr: 'nft is not in the PATH' }
  onPid?.(child.pid)
  const output = Promise.all([child.stdout.text(), child.stderr.text()])
  if (input !== undefined) await feed(child.stdin as Bun.FileSink, input)
  const [stdout, stderr] = await output
  await child.exited
  return { exitCode: child.exitCode, signal: child.signalCode, stdout, stderr }
}

function spawn(words: string[], input: boolean) {
  try {
    return Bun.spawn(['nft', ...words], {
      stdio: [input ? 'pipe' : 'ignore', 'pipe', 'pipe'],
      timeout: NFT_MS_MAX,
      killSignal: 'SIGKILL',
    })
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null
    throw new NftError(`Cannot run nft: ${(error as Error).message}`)
  }
}

/** An nft that ends before it has read everything closes its end: its exit code tells, not the pipe. */
async function feed(stdin: Bun.FileSink, input: string) {
  try {
    // What write() answers may be a promise that fails as well: nobody else would take it.
    await Promise.all([stdin.write(input), stdin.end()])
  } catch {}
}

const messageOf = (stderr: string) =>
  stderr
    .split('\n')
    .filter((line) => line.trim() !== '')
    .slice(0, 3)
    .join(' ')
    .slice(0, MESSAGE_CHARS_MAX)

/** Only our own table, by name: listing sets that a newer nft made can crash this one. */
async function listing(words: string[]): Promise<unknown[] | null> {
  const result = await run(['-j', ...words])
  if (result.exitCode === 0) return (JSON.parse(result.stdout) as { nftables: unknown[] }).nftables
  if (/No such file or directory/.test(result.stderr)) return null
  throw new NftError(
    `Cannot read the nft table: ${messageOf(result.stderr) || `nft ended with ${result.exitCode ?? result.signal}`}`,
  )
}

export const nft: Nft = {
  async apply(commands, onPid) {
    const result = await run(['-f', '-'], commands.join('\n') + '\n', onPid)
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
    const result = await run(['--version'])
    if (result.exitCode !== 0)
      throw new NftError(
        result.exitCode === 127
          ? 'nft is not installed (apt-get install nftables)'
          : `Cannot run nft: ${messageOf(result.stderr)}`,
      )
    return /v(\d+\.\d+\.\d+)/.exec(result.stdout)?.[1] ?? result.stdout.trim()
  },
}
