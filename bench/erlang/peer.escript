#!/usr/bin/env escript
%%! -kernel inet_dist_use_interface {127,0,0,1}
%% What Erlang/OTP's own supervisor does, for the tables of `cargo measure`.
%%
%%   peer.escript version
%%   peer.escript memory N       bytes: of all memory with N supervised children, each with a timer
%%   peer.escript heal N         microseconds from crash to running again: p50 and p99 of N
%%   peer.escript afar N         the same of a child on another node, whose supervisor is on this one
%%   peer.escript trip N         microseconds of one message to another node and back: p50 and p99 of N
%%   peer.escript freeze TICK    seconds from SIGSTOP of another node to its being down, at that net tick time
%%
%% Nodes find each other by a daemon of their own, at ERL_EPMD_PORT of the loopback.
-module(wardkeep_bench_peer).
-mode(compile).
-behaviour(supervisor).
-export([main/1, init/1, idle/0, idle/1, crashing/1, crashing/2, afar/2, crashes/1, echo/0]).

main(["version"]) ->
    io:format("~s~n", [erlang:system_info(otp_release)]);
main(["memory", N]) ->
    {ok, Supervisor} = supervisor:start_link(?MODULE, {simple_one_for_one, idle, []}),
    Count = list_to_integer(N),
    [{ok, _} = supervisor:start_child(Supervisor, []) || _ <- lists:seq(1, Count)],
    timer:sleep(1500),
    io:format("~b~n", [erlang:memory(total)]);
main(["heal", N]) ->
    logger:set_primary_config(level, none),
    heal(N, crashing, [self()]);
main(["afar", N]) ->
    logger:set_primary_config(level, none),
    with_another([], fun(Other) -> heal(N, afar, [Other, self()]) end);
main(["trip", N]) ->
    with_another([], fun(Other) ->
        Echo = spawn(Other, ?MODULE, echo, []),
        percentiles([trip(Echo) || _ <- lists:seq(1, list_to_integer(N))])
    end);
main(["freeze", Tick]) ->
    logger:set_primary_config(level, none),
    application:set_env(kernel, net_ticktime, list_to_integer(Tick)),
    with_another(["-kernel", "net_ticktime", Tick], fun(Other) ->
        Process = erpc:call(Other, os, getpid, []),
        true = monitor_node(Other, true),
        %% Its ticks become a rhythm.
        timer:sleep(3000),
        Frozen = erlang:monotonic_time(millisecond),
        os:cmd("kill -STOP " ++ Process),
        receive {nodedown, Other} -> ok end,
        io:format("~f~n", [(erlang:monotonic_time(millisecond) - Frozen) / 1000]),
        os:cmd("kill -KILL " ++ Process)
    end).

heal(N, Function, Args) ->
    {ok, _} = supervisor:start_link(?MODULE, {one_for_one, Function, Args}),
    _ = began(),
    percentiles([crash() || _ <- lists:seq(1, list_to_integer(N))]).

percentiles(Nanoseconds) ->
    Took = lists:sort(Nanoseconds),
    At = fun(Share) -> lists:nth(max(1, trunc(length(Took) * Share)), Took) / 1000 end,
    io:format("~f ~f~n", [At(0.5), At(0.99)]).

%% Does something with another node, which has this module, and ends that and all it took.
with_another(Args, Do) ->
    os:cmd("epmd -daemon -address 127.0.0.1"),
    {ok, _} = start_net(list_to_atom("bench_" ++ os:getpid() ++ "@127.0.0.1"), 100),
    Loopback = ["-kernel", "inet_dist_use_interface", "{127,0,0,1}"],
    Name = "other_" ++ os:getpid(),
    {ok, _, Other} =
        peer:start(#{name => Name, host => "127.0.0.1", longnames => true, args => Loopback ++ Args}),
    {ok, Sections} = escript:extract(escript:script_name(), [compile_source]),
    {source, Code} = lists:keyfind(source, 1, Sections),
    {module, _} = erpc:call(Other, code, load_binary, [?MODULE, "peer", Code]),
    Do(Other),
    %% It may be gone.
    catch erpc:cast(Other, erlang, halt, []),
    net_kernel:stop(),
    end_daemon(100).

%% The daemon may take a moment.
start_net(Name, Tries) ->
    case net_kernel:start(Name, #{name_domain => longnames}) of
        {error, _} when Tries > 0 -> timer:sleep(20), start_net(Name, Tries - 1);
        Started -> Started
    end.

%% It stays for as long as it knows a node.
end_daemon(Tries) ->
    case os:cmd("epmd -kill") of
        "Killed" ++ _ -> ok;
        _ when Tries > 0 -> timer:sleep(20), end_daemon(Tries - 1);
        Other -> io:format(standard_error, "epmd stays: ~s", [Other])
    end.

init({Strategy, Function, Args}) ->
    Child = #{id => child, start => {?MODULE, Function, Args}},
    {ok, {#{strategy => Strategy, intensity => 1000000, period => 1}, [Child]}}.

idle() ->
    proc_lib:start_link(?MODULE, idle, [self()]).

idle(Parent) ->
    proc_lib:init_ack(Parent, {ok, self()}),
    tick().

tick() ->
    receive stop -> ok after 1000 -> tick() end.

crashing(Main) ->
    proc_lib:start_link(?MODULE, crashing, [self(), Main]).

crashing(Parent, Main) ->
    begins(Main),
    proc_lib:init_ack(Parent, {ok, self()}),
    waits(Main).

%% Started by a supervisor on another node.
afar(Node, Main) ->
    {ok, spawn_link(Node, ?MODULE, crashes, [Main])}.

crashes(Main) ->
    begins(Main),
    waits(Main).

begins(Main) ->
    Main ! {began, self(), erlang:monotonic_time(nanosecond)}.

waits(Main) ->
    receive
        crash ->
            Main ! {crashed, erlang:monotonic_time(nanosecond)},
            error(boom)
    end.

echo() ->
    receive {From, ask} -> From ! answer, echo() end.

trip(Echo) ->
    timer:sleep(1),
    Begin = erlang:monotonic_time(nanosecond),
    Echo ! {self(), ask},
    receive answer -> erlang:monotonic_time(nanosecond) - Begin end.

began() ->
    receive {began, Pid, At} -> put(child, Pid), At end.

crash() ->
    timer:sleep(1),
    get(child) ! crash,
    receive {crashed, Crashed} -> began() - Crashed end.
