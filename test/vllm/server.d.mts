export interface Server {
  readonly base: string;
  /** Seconds until it answered. */
  readonly ready: number;
  healthy(): Promise<boolean>;
  hasEnded(): boolean;
  stop(): Promise<void>;
}
export function startServer(how: {
  folder: string;
  model: string;
  port: number;
  dtype?: string;
  env?: Record<string, string>;
  flags?: readonly string[];
}): Promise<Server>;
