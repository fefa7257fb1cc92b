import { Command } from 'commander';
import { devices } from '../index.js';
import { print, printJson } from './options.js';
import { table } from './table.js';

export function devicesCommand(): Command {
  return new Command('devices')
    .description('List the devices that kernels can run on here, and the reason where one cannot be used.')
    .option('--json', 'print JSON')
    .addHelpText('after', '\nExample:\n  $ desap devices --json')
    .action(({ json }: { json?: boolean }) => {
      const reports = devices();
      if (json) return printJson(reports);
      const rows = reports.map((report) =>
        report.available
          ? [
              report.device,
              'yes',
              'isas' in report ? `${report.description} (${report.isas.join(', ')})` : report.description,
            ]
          : [report.device, 'no', report.reason],
      );
      print(table(['device', 'available', 'what it is, or why it cannot be used'], rows));
    });
}
