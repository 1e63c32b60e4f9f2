// Every command with its options, in words: what runs the program, and what completion and the manual are made of. Building it
// does nothing; each command loads only what it needs: a listing does not carry the gateway with it.
import { Argument, Command, Option } from 'commander'
import { DEFAULT_SOCKET, VERSION } from './base/about.ts'
import type { ClientOptions } from './commands/gateway.ts'
import type { TopOptions } from './commands/top.ts'
import { presentRuntime } from './modules.ts'

export function makeProgram(): Command {
  const program = new Command('sluice')
    .description('An edge proxy for Linux gateways: user space decides, the kernel carries.')
    .version(VERSION, '-V, --version')
    .showHelpAfterError('(sluice --help lists the commands)')
    // On 80 columns the descriptions have room beside the arguments; that there are options every command's own help says.
    .configureHelp({
      subcommandTerm: (command) =>
        [
          command.name(),
          ...command.registeredArguments.map((one) => (one.required ? `<${one.name()}>` : `[${one.name()}]`)),
        ].join(' '),
    })
    .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, 'sluice: ')) })
    .addHelpText(
      'after',
      '\nExit codes: 0 done, 1 failed, 2 wrong usage or configuration.\nsluice COMMAND --help says more of a command.',
    )
    .exitOverride()

  const configOption = () =>
    new Option(
      '-c, --config <file>',
      'configuration file (default: ./sluice.config.ts, then /etc/sluice/sluice.config.ts)',
    )
  const adminOption = () =>
    new Option(
      '--admin <socket>',
      `admin socket of the running gateway (default: admin.socket of --config, else ${DEFAULT_SOCKET})`,
    )
  const listing = (name: string, description: string, under = program) =>
    under
      .command(name)
      .description(description)
      .addOption(adminOption())
      .addOption(configOption())
      .option('--json', 'print JSON')

  program
    .command('run')
    .description('run the gateway in the foreground')
    .addOption(configOption())
    .option('--check', 'only validate the configuration')
    .option('--watch', 'reload when the configuration file changes')
    .action(async (options: { config?: string; check?: boolean; watch?: boolean }) => {
      const { run } = await import('./commands/run.ts')
      process.exitCode = await run(options)
    })

  program
    .command('demo')
    .description('run the gateway with backends of its own in throwaway network namespaces')
    .action(async () => {
      const { demo } = await import('./demo.ts')
      process.exitCode = await demo()
    })

  program
    .command('plan')
    .description(
      'show route by route which carrier it gets, why, the rules that would be applied, and what a running gateway would change',
    )
    .addOption(adminOption())
    .addOption(configOption())
    .option('--json', 'print JSON')
    .action(async (options: ClientOptions) => {
      const { showPlan } = await import('./commands/plan.ts')
      process.exitCode = await showPlan(options)
    })

  program
    .command('init')
    .description('write a commented starter configuration')
    .argument('[file]', 'where to', 'sluice.config.ts')
    .action(async (file: string) => {
      const { init } = await import('./commands/init.ts')
      process.exitCode = await init(file)
    })

  program
    .command('schema')
    .description('print the JSON Schema of the configuration')
    .action(async () => {
      const { schema } = await import('./commands/init.ts')
      console.log(schema())
    })

  listing('doctor', 'check the machine: what stands in the way of the gateway, and the command that mends it').action(
    async (options: ClientOptions) => {
      const { doctor } = await import('./commands/doctor.ts')
      process.exitCode = await doctor(options)
    },
  )

  for (const [name, description] of [
    ['status', 'show how the gateway does'],
    ['routes', 'list the routes: what carries them now, and why'],
    ['targets', 'list the targets of every route: whether they are up, and what they carry'],
    ['connections', 'list the live connections, kernel flows and proxied ones'],
  ] as const)
    listing(name, description).action(async (options: ClientOptions) => {
      const { show } = await import('./commands/client.ts')
      process.exitCode = await show(name, options)
    })

  listing(
    'top',
    'watch the gateway: routes, connections, clients and targets, live; one picture where there is no terminal',
  )
    .option('--interval <duration>', 'how often to look (default: 1s)')
    .option('--once', 'one picture, and end')
    .addOption(new Option('--tab <tab>', 'what to begin with').choices(['routes', 'connections', 'clients', 'targets']))
    .option('--route <name>', 'only this route')
    .option('--client <address>', 'only this client; "10.0." is a beginning')
    .option('--target <text>', 'only targets that contain it')
    .action(async (options: TopOptions) => {
      const { top } = await import('./commands/top.ts')
      process.exitCode = await top(options)
    })

  const certificates = listing(
    'certificates',
    'list the certificates: where they come from, when they expire, what went wrong',
  ).action(async (options: ClientOptions) => {
    const { listCertificates } = await import('./commands/certificates.ts')
    process.exitCode = await listCertificates(options)
  })
  // Also where the options stand before the name of the command.
  const merged = (own: ClientOptions): ClientOptions => ({ ...certificates.opts(), ...own })
  listing('renew', 'renew a certificate now: files are read again, others are made or asked for', certificates)
    .argument('<name>', 'its name, as "sluice certificates" shows it')
    .action(async (name: string, options: ClientOptions) => {
      const { renewCertificate } = await import('./commands/certificates.ts')
      process.exitCode = await renewCertificate(name, merged(options))
    })
  listing('trust', "show how clients come to trust the authority of certificate 'self-signed'", certificates)
    .option('--pem', 'print its certificate')
    .action(async (options: ClientOptions & { pem?: boolean }) => {
      const { trust } = await import('./commands/certificates.ts')
      process.exitCode = await trust({ ...options, ...merged(options) })
    })

  listing('explain', 'say which route, carrier and target a connection would get, and what would stop it')
    .argument('<client>', 'where it comes from: "192.0.2.7", or with a port')
    .argument('<listener>', 'where it goes: "443", "192.0.2.1:443", "53/udp"')
    .argument('[name]', 'the server name that it asks for')
    .action(async (client: string, listener: string, name: string | undefined, options: ClientOptions) => {
      const { showExplanation } = await import('./commands/explain.ts')
      process.exitCode = await showExplanation(client, listener, name, options)
    })

  listing('close', 'end one connection at both sides')
    .argument('<id>', 'its id, as "sluice connections" shows it')
    .action(async (id: string, options: ClientOptions) => {
      const { act } = await import('./commands/client.ts')
      process.exitCode = await act('DELETE', `/v1/connections/${encodeURIComponent(id)}`, options)
    })

  listing('drain', 'take a route or a target out: no new connections, the ones that are there finish')
    .argument('<route|target>', 'a route by its name, or a target as "sluice targets" shows it')
    .option('--for <duration>', 'cut what is left after this long, "10m"; without it drain waits')
    .option('--undo', 'put it back')
    .action(async (what: string, options: ClientOptions & { for?: string; undo?: boolean }) => {
      const { drain } = await import('./commands/drain.ts')
      process.exitCode = await drain(what, options)
    })

  listing('reload', 'read the configuration again and apply what changed')
    .option('--confirm <duration>', 'take the change back unless "sluice confirm" follows within this time, "60s"')
    .action(async (options: ClientOptions & { confirm?: string }) => {
      const { reload } = await import('./commands/reload.ts')
      process.exitCode = await reload(options)
    })

  listing('confirm', 'keep the change that waits for its confirmation').action(async (options: ClientOptions) => {
    const { confirm } = await import('./commands/reload.ts')
    process.exitCode = await confirm(options)
  })

  listing(
    'upgrade',
    'replace the running program by the one that is installed now, without refusing a connection',
  ).action(async (options: ClientOptions) => {
    const { upgrade } = await import('./commands/upgrade.ts')
    process.exitCode = await upgrade(options)
  })

  listing('stop', 'stop the gateway: drain for the grace period, then end').action(async (options: ClientOptions) => {
    const { stop } = await import('./commands/stop.ts')
    process.exitCode = await stop(options)
  })

  program
    .command('completion')
    .description('print what makes a shell complete commands, options, and names of the running gateway')
    .addArgument(new Argument('<shell>', 'whose').choices(['bash', 'zsh', 'fish']))
    .action(async (shell: string) => {
      const { completion } = await import('./commands/completion.ts')
      process.exitCode = completion(shell)
    })

  program
    .command('man')
    .description('print the manual page: sluice man | man -l -')
    .action(async () => {
      const { manual } = await import('./commands/man.ts')
      process.stdout.write(manual(program))
    })

  // Not for people: what the completion of a shell asks.
  program
    .command('complete', { hidden: true })
    .argument('[words...]')
    .action(async (words: string[]) => {
      const { answerCompletion } = await import('./commands/completion.ts')
      await answerCompletion(program, words)
      // A configuration may still be evaluated for the socket's path: nobody waits for that.
      process.exit(0)
    })

  // Not for people: the processes that control starts.
  program.command('worker', { hidden: true }).action(async () => {
    presentRuntime()
    const { runWorker } = await import('./worker.ts')
    await runWorker()
  })
  program
    .command('evaluate', { hidden: true })
    .argument('<file>')
    .action(async (file: string) => {
      const { evaluate, inWords } = await import('./config/evaluate.ts')
      // What is printed is the answer's: what the configuration says goes elsewhere.
      for (const say of ['log', 'info', 'debug'] as const) console[say] = console.error
      try {
        process.stdout.write(await evaluate(file))
      } catch (error) {
        process.stderr.write(`${inWords(error)}\n`)
        process.exit(1)
      }
      // The configuration may have left timers or sockets behind: they are not ours to wait for.
      await new Promise<void>((resolve) => process.stdout.write('', () => resolve()))
      process.exit(0)
    })
  program
    .command('provide', { hidden: true })
    .argument('<module>')
    .argument('<name>')
    .action(async (module: string, name: string) => {
      const { provide } = await import('./certificates/provider.ts')
      // The last line is the answer's: what the module says goes elsewhere.
      for (const say of ['log', 'info', 'debug'] as const) console[say] = console.error
      process.stdout.write(`\n${await provide(module, name)}\n`)
      await new Promise<void>((resolve) => process.stdout.write('', () => resolve()))
      process.exit(0)
    })
  program
    .command('demo-backend', { hidden: true })
    .argument('<address>')
    .action(async (address: string) => {
      const { demoBackend } = await import('./demo-backend.ts')
      await demoBackend(address)
    })
  for (const command of program.commands) command.showHelpAfterError(`("sluice ${command.name()} --help" says more)`)
  return program
}
