// Compiles the Solidity sources with npm's solc and writes, or with --check compares, the committed results.
//   node compile-contracts.js NODE_MODULES ROOT [--check]
'use strict';
const fs = require('fs');
const path = require('path');
const [modules, root, mode] = process.argv.slice(2);
const solc = require(path.join(modules, 'solc'));

const targets = [
  { evmVersion: 'cancun', file: 'contracts/NodeAccess.sol', contract: 'NodeAccess', abi: 'contracts/NodeAccess.abi.json', code: 'contracts/NodeAccess.hex' },
  // The oldest instruction set in use: the same bytes run on every chain.
  { evmVersion: 'paris', file: 'src/grants/GrantReads.sol', contract: 'GrantReads', code: 'src/grants/GrantReads.hex' },
];
const compile = ({ file, evmVersion }) => {
  const input = {
    language: 'Solidity',
    sources: { [file]: { content: fs.readFileSync(path.join(root, file), 'utf8') } },
    settings: {
      evmVersion,
      optimizer: { enabled: true, runs: 1 },
      metadata: { appendCBOR: false, bytecodeHash: 'none' },
      outputSelection: { '*': { '*': ['abi', 'evm.bytecode.object'] } },
    },
  };
  const imported = (name) => ({ contents: fs.readFileSync(path.join(modules, name), 'utf8') });
  const output = JSON.parse(solc.compile(JSON.stringify(input), { import: imported }));
  for (const e of output.errors || []) console.error(e.formattedMessage);
  if ((output.errors || []).some((e) => e.severity === 'error')) process.exit(1);
  return output.contracts[file];
};

let stale = 0;
const put = (name, text) => {
  const file = path.join(root, name);
  if (mode === '--check') {
    if (!fs.existsSync(file) || fs.readFileSync(file, 'utf8') !== text) {
      console.error(`${name} is not what its source compiles to: run scripts/build-contract`);
      stale = 1;
    }
  } else {
    fs.writeFileSync(file, text);
    console.log(`${name}: ${text.length} characters`);
  }
};
for (const t of targets) {
  const made = compile(t)[t.contract];
  if (t.abi) put(t.abi, JSON.stringify(made.abi, null, 1) + '\n');
  put(t.code, made.evm.bytecode.object + '\n');
}
process.exit(stale);
