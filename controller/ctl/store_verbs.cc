// backup, restore: the embedded store, offline.
#include <string>

#include "controller/ctl/context.h"
#include "controller/ctl/output.h"
#include "controller/store/sqlite_store.h"
#include "proto/base/status_macros.h"

namespace ballast {
namespace {

struct StoreOptions {
  std::string store;
  std::string backup;
  bool overwrite = false;
};

absl::Status Report(const CtlContext& context, const char* verb, const std::string& from, const std::string& to) {
  if (context.output == OutputFormat::kTable) {
    context.out << verb << " " << from << " to " << to << "\n";
  } else {
    PrintDocument(context.output, {{"from", from}, {"to", to}}, context.out);
  }
  return absl::OkStatus();
}

}  // namespace

void AddStoreVerbs(CLI::App& app, CtlContext& context) {
  // Lives as long as the callbacks do: for the whole program.
  auto& o = *new StoreOptions;
  CLI::App* backup = app.add_subcommand("backup", "Copy a controller's store to a new file; stop the controller first");
  backup->add_option("store", o.store, "The controller's --store")->type_name("FILE")->required();
  backup->add_option("backup", o.backup, "File to make; must not exist")->type_name("FILE")->required();
  backup->callback([&context, &o] {
    context.run = [&context, &o]() -> absl::Status {
      BALLAST_RETURN_IF_ERROR(BackupStore(o.store, o.backup));
      return Report(context, "Backed up", o.store, o.backup);
    };
  });

  CLI::App* restore = app.add_subcommand(
      "restore",
      "Make a controller's store from a backup; stop the controller first. Its term jumps ahead, so that\n"
      "workers obey it although the backup is older than what they have seen");
  restore->add_option("backup", o.backup, "File that 'backup' made")->type_name("FILE")->required();
  restore->add_option("store", o.store, "The controller's --store")->type_name("FILE")->required();
  restore->add_flag("--overwrite", o.overwrite, "Replace a store that exists");
  restore->callback([&context, &o] {
    context.run = [&context, &o]() -> absl::Status {
      BALLAST_RETURN_IF_ERROR(RestoreStore(o.backup, o.store, o.overwrite));
      return Report(context, "Restored", o.backup, o.store);
    };
  });
}

}  // namespace ballast
