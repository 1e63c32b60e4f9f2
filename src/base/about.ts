// What every process says of the program, and where it looks when nobody says otherwise.
export const VERSION = '0.1.0'
export const DEFAULT_SOCKET = '/run/sluice/admin.sock'
export const DEFAULT_STATE_DIR = '/var/lib/sluice'
