// A program around use.mjs, as it is and as bundles of it. Prints what came out as one line of JSON.
import { use } from './use.mjs';

use(process.env.DESAP_MODELS).then(
  (result) => console.log(JSON.stringify(result)),
  (error) => {
    console.error(error);
    process.exitCode = 1;
  },
);
