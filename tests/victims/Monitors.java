import java.util.concurrent.CountDownLatch;

/** Monitors with known owners: a deadlock of two, a thread behind an owner that sleeps, one in Object.wait; with an argument N, as many more behind the sleeper. */
public class Monitors {
    static void hold(Object first, CountDownLatch both, Object second) {
        synchronized (first) {
            both.countDown();
            try { both.await(); } catch (InterruptedException e) { return; }
            synchronized (second) { System.exit(1); }
        }
    }

    static Thread start(String name, Runnable body) {
        Thread thread = new Thread(body, name);
        thread.setDaemon(true);
        thread.start();
        return thread;
    }

    static void until(Thread thread, Thread.State state) throws InterruptedException {
        while (thread.getState() != state) Thread.sleep(1);
    }

    public static void main(String[] args) throws Exception {
        Object a = new Object(), b = new Object(), slept = new Object(), waited = new Object();
        CountDownLatch both = new CountDownLatch(2);
        Thread left = start("dead-left", () -> hold(a, both, b));
        Thread right = start("dead-right", () -> hold(b, both, a));
        Thread sleeper = start("sleeper", () -> {
            synchronized (slept) { try { Thread.sleep(1L << 40); } catch (InterruptedException e) { } }
        });
        until(sleeper, Thread.State.TIMED_WAITING);
        int more = args.length > 0 ? Integer.parseInt(args[0]) : 0;
        Thread[] behind = new Thread[1 + more];
        for (int i = 0; i < behind.length; i++)
            behind[i] = start("behind-" + i, () -> { synchronized (slept) { System.exit(1); } });
        Thread waiter = start("in-wait", () -> {
            synchronized (waited) { try { waited.wait(); } catch (InterruptedException e) { } }
        });
        for (Thread thread : behind) until(thread, Thread.State.BLOCKED);
        until(left, Thread.State.BLOCKED);
        until(right, Thread.State.BLOCKED);
        until(waiter, Thread.State.WAITING);
        long pid = ProcessHandle.current().pid();
        System.out.println("{\"ready\":true,\"shape\":\"java\",\"pid\":" + pid + ",\"threads\":[]}");
        System.in.read();
        System.exit(0);
    }
}
