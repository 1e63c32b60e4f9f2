// Asks a certificate module for the certificate of a name, in a short-lived child process (certificates/provider.ts): a module
// that hangs or crashes takes nothing with it, and one that was changed is read anew.
import { dirname } from 'node:path'
import { PROVIDER_ANSWER_BYTES_MAX, PROVIDER_MS_MAX } from '../base/limits.ts'
import type { Provide, ProviderAnswer } from '../certificates/index.ts'
import { runChild } from '../config/load.ts'

export const provide: Provide = async (module, name, signal) => {
  const limits = { msMax: PROVIDER_MS_MAX, bytesMax: PROVIDER_ANSWER_BYTES_MAX }
  signal.throwIfAborted()
  try {
    const printed = await runChild(['provide', module, name], { cwd: dirname(module), ...limits, signal })
    const answer = parse(printed.trimEnd().split('\n').at(-1)!)
    if (typeof answer === 'object' && 'error' in answer) throw new Error(answer.error)
    return answer
  } catch (cause) {
    throw new Error(`Certificate module ${module}: ${(cause as Error).message}`, { cause })
  }
}

/** The line is the module's where it ended before the answer was written. */
function parse(line: string): ProviderAnswer | { error: string } {
  try {
    return JSON.parse(line)
  } catch {
    throw new Error('it ended without an answer')
  }
}
