// A command that cannot be understood as it was given: exit code 2.

export class WrongUsage extends Error {
  override name = 'WrongUsage'
}
