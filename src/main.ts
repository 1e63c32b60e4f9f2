#!/usr/bin/env bun
// The command line: runs the command that is asked for, and ends with its exit code.
// First of all: @peculiar/x509 needs it before itself, and the bundler of the compiled program keeps no finer order.
import 'reflect-metadata'
import { CommanderError } from 'commander'
import { WrongUsage } from './commands/wrong.ts'
import { provideModules } from './modules.ts'
import { makeProgram } from './program.ts'

/** Exit codes: 0 done, 1 failed, 2 wrong usage or configuration. */
const FAILED = 1
const WRONG = 2

provideModules()

try {
  await makeProgram().parseAsync()
} catch (error) {
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? 0 : WRONG
  else {
    process.stderr.write(`sluice: ${(error as Error).message}\n`)
    process.exitCode = error instanceof WrongUsage ? WRONG : FAILED
  }
}
