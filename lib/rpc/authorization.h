#ifndef COX_LIB_RPC_AUTHORIZATION_H_
#define COX_LIB_RPC_AUTHORIZATION_H_

// Which role may call which RPC: one table, default deny.

#include <span>
#include <string>
#include <string_view>

namespace cox {

// "coordinator", "learner", "actor", "reward", "operator", "viewer", "scaler".
std::span<const std::string_view> Roles();

// `method` as in "RunService.Register". False for a method without a row and
// for an unknown role.
bool RoleMay(std::string_view role, std::string_view method);

// "/cox.v1.RunService/Register" -> "RunService.Register": the last component of
// the package's name and the method. "" when it is no path of that form.
std::string MethodOfPath(std::string_view path);

}  // namespace cox

#endif  // COX_LIB_RPC_AUTHORIZATION_H_
